//! What the kernel says of processes and sockets, from `/proc`.
//!
//! Everything here may be stale by the time it is read: callers identify a process by pid *and* start time, and signal it through
//! a pidfd that was opened before the two were compared.

use std::fs;
use std::io;

/// Arguments that are shown of a command line.
const COMMAND_CHARS_MAX: usize = 400;

/// The fields of `/proc/PID/stat` that tell processes apart and together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Stat {
    pub(super) pid: i32,
    pub(super) parent: i32,
    pub(super) session: i32,
    /// Clock ticks between boot and start: with the pid it names a process for the whole uptime.
    pub(super) start_ticks: u64,
    /// Ended with all its threads, and only waiting for its parent to look. A process whose first thread has ended shows as Z too,
    /// while the others still hold its memory (an API server's do, for a second).
    pub(super) zombie: bool,
}

/// A process as it is now; none if there is no such.
pub(super) fn stat(pid: i32) -> Option<Stat> {
    parse_stat(&fs::read_to_string(format!("/proc/{pid}/stat")).ok()?)
}

/// Every process that can be seen.
pub(super) fn processes() -> impl Iterator<Item = Stat> {
    pids().filter_map(stat)
}

pub(super) fn pids() -> impl Iterator<Item = i32> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok())
}

/// The second field is the program's name in parentheses, which may itself hold spaces and parentheses.
fn parse_stat(text: &str) -> Option<Stat> {
    let (pid, rest) = text.split_once(" (")?;
    let (_, rest) = rest.rsplit_once(") ")?;
    let mut fields = rest.split_ascii_whitespace();
    let ended = matches!(fields.next()?, "Z" | "X" | "x"); // field 3
    let parent = fields.next()?.parse().ok()?;
    let session = fields.nth(1)?.parse().ok()?; // field 6
    let threads: u32 = fields.nth(13)?.parse().ok()?; // field 20
    let zombie = ended && threads <= 1;
    let start_ticks = fields.nth(1)?.parse().ok()?; // field 22
    Some(Stat {
        pid: pid.trim().parse().ok()?,
        parent,
        session,
        start_ticks,
        zombie,
    })
}

/// Tells one uptime of the machine from another: pids and start times repeat after a boot.
pub(super) fn boot_id() -> io::Result<String> {
    fs::read_to_string("/proc/sys/kernel/random/boot_id").map(|text| text.trim().to_owned())
}

/// A process's arguments for a person to read: keys masked, shortened. Its name if it has none (a kernel thread), or if they
/// can't be read.
pub(super) fn command_line(pid: i32) -> Option<String> {
    let raw = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    let text = String::from_utf8_lossy(&raw);
    let args: Vec<&str> = text.split('\0').filter(|arg| !arg.is_empty()).collect();
    if args.is_empty() {
        return fs::read_to_string(format!("/proc/{pid}/comm"))
            .ok()
            .map(|name| name.trim().to_owned());
    }
    Some(masked(&args))
}

/// Other people pass keys in arguments; they don't belong on our screen or in our log.
fn masked(args: &[&str]) -> String {
    let mut shown: Vec<String> = Vec::with_capacity(args.len());
    let mut secret_follows = false;
    for arg in args {
        let (flag, value) = arg
            .split_once('=')
            .map_or((*arg, None), |(flag, value)| (flag, Some(value)));
        let flag_is_secret = flag.starts_with("--")
            && ["key", "token", "password", "secret"]
                .iter()
                .any(|word| flag.contains(word));
        if secret_follows && !arg.starts_with("--") {
            shown.push("***".to_owned()); // --api-key takes several: all up to the next flag
            continue;
        }
        secret_follows = flag_is_secret && value.is_none();
        shown.push(if flag_is_secret && value.is_some() {
            format!("{flag}=***")
        } else {
            (*arg).to_owned()
        });
    }
    let line = shown.join(" ");
    match line.char_indices().nth(COMMAND_CHARS_MAX) {
        Some((at, _)) => format!("{}…", line.get(..at).unwrap_or_default()),
        None => line,
    }
}

/// The inode of the socket that listens on `port` (any address, IPv4 or IPv6).
pub(super) fn listening_inodes(port: u16) -> Vec<u64> {
    let tables = ["/proc/net/tcp", "/proc/net/tcp6"];
    tables
        .iter()
        .flat_map(|path| listeners(&fs::read_to_string(path).unwrap_or_default(), port))
        .collect()
}

/// Rows of `/proc/net/tcp`: number, local `ADDRESS:PORT` in hex, remote, state (0A = LISTEN), …, inode.
fn listeners(table: &str, port: u16) -> Vec<u64> {
    let wanted = format!(":{port:04X}");
    let row = |line: &str| {
        let mut fields = line.split_ascii_whitespace();
        let local = fields.nth(1)?;
        let state = fields.nth(1)?;
        let inode = fields.nth(5)?.parse().ok()?;
        (local.ends_with(&wanted) && state == "0A").then_some(inode)
    };
    table.lines().skip(1).filter_map(row).collect()
}

/// Whether a process has one of these sockets open. False also if its files can't be seen (another user's).
pub(super) fn has_socket(pid: i32, inodes: &[u64]) -> bool {
    let files = fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten();
    files.filter_map(|file| fs::read_link(file.path()).ok()).any(|target| {
        let inode = target
            .to_str()
            .and_then(|text| text.strip_prefix("socket:[")?.strip_suffix(']')?.parse().ok());
        inode.is_some_and(|inode: u64| inodes.contains(&inode))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_with_parentheses_and_spaces_is_no_field() {
        let line = "4711 (VLLM::Eng) (x ) S 4700 4711 4699 0 -1 4194560 1 2 3 4 5 6 7 8 20 0 1 0 987654 1000 200 18446744073709551615 1";
        let expect = Stat {
            pid: 4711,
            parent: 4700,
            session: 4699,
            start_ticks: 987_654,
            zombie: false,
        };
        assert_eq!(parse_stat(line), Some(expect));
        let dead = line.replace(" S ", " Z ");
        assert_eq!(parse_stat(&dead), Some(Stat { zombie: true, ..expect }));
        let ending = dead.replace(" 20 0 1 0 ", " 20 0 30 0 ");
        assert_eq!(parse_stat(&ending), Some(expect), "29 threads still hold its memory");
        assert_eq!(parse_stat("4711 (x) S 1 2"), None);
        assert_eq!(parse_stat(""), None);
    }

    #[test]
    fn we_are_a_process_of_this_uptime() {
        let me = i32::try_from(std::process::id()).unwrap();
        let mine = stat(me).unwrap();
        assert_eq!((mine.pid, mine.zombie), (me, false));
        assert!(processes().any(|other| other == mine));
        assert!(!command_line(me).unwrap().is_empty());
        assert_eq!(boot_id().unwrap().len(), 36);
        assert_eq!(stat(i32::MAX), None);
    }

    #[test]
    fn only_listeners_of_that_very_port_count() {
        let table = "\
  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode
   0: 0100007F:138A 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 111 1 0000000000000000 100 0 0 10 0
   1: 0100007F:138A 0100007F:A2B4 01 00000000:00000000 00:00000000 00000000     0        0 222 1 0000000000000000 20 4 30 10 -1
   2: 00000000:1F40 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 333 1 0000000000000000 100 0 0 10 0
";
        assert_eq!(listeners(table, 5002), [111]);
        assert_eq!(listeners(table, 8000), [333]);
        assert_eq!(listeners(table, 8001), [0u64; 0]);
    }

    #[test]
    fn keys_in_arguments_of_others_are_masked() {
        let line = masked(&[
            "vllm",
            "serve",
            "--api-key",
            "sk-1",
            "sk-2",
            "--port",
            "5002",
            "--hf-token=hf_x",
            "m",
        ]);
        assert_eq!(line, "vllm serve --api-key *** *** --port 5002 --hf-token=*** m");
        assert_eq!(
            masked(&["é".repeat(900).as_str()]).chars().count(),
            COMMAND_CHARS_MAX + 1
        );
    }
}
