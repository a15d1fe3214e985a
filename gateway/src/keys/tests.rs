//! Verdicts, the key file on a real disk, and what happens at a first start.

use std::{fs, os::unix::fs::PermissionsExt as _, time::Duration};

use super::*;

fn no_env(_: &str) -> Option<OsString> {
    None
}

fn now() -> Timestamp {
    "2026-11-24T12:00:00Z".parse().unwrap()
}

fn new_key(name: &str) -> NewKey {
    NewKey {
        name: name.to_owned(),
        ..NewKey::default()
    }
}

/// A ring over a file with these keys, and their secrets.
fn ring(folder: &Path, keys: &[NewKey]) -> (KeyRing, Vec<Secret>) {
    let path = folder.join("keys.toml");
    let secrets = keys
        .iter()
        .map(|key| KeyFile::add(&path, key, now()).unwrap())
        .collect();
    (
        KeyRing::open(&AuthConfig::default(), folder, no_env).unwrap().ring,
        secrets,
    )
}

fn authorization(secret: &Secret) -> Vec<u8> {
    format!("Bearer {}", secret.reveal()).into_bytes()
}

fn name(verdict: KeyVerdict) -> String {
    match verdict {
        KeyVerdict::Accepted(id) => id.name.to_string(),
        other => format!("{other:?}"),
    }
}

#[test]
fn the_three_kinds_of_401_are_told_apart() {
    let folder = tempfile::tempdir().unwrap();
    let (ring, secrets) = ring(folder.path(), &[new_key("agent")]);
    let key = secrets[0].reveal().to_owned();
    let check = |value: Option<&str>| name(ring.check(value.map(str::as_bytes), now()));
    assert_eq!(check(None), "Missing");
    for value in [
        "",
        " ",
        "Bearer",
        "Bearer ",
        "Bearer   ",
        &key,
        &format!("Basic {key}"),
        &format!("Bearer{key}"),
        "Bearerr x",
    ] {
        assert_eq!(check(Some(value)), "NotBearer", "{value:?}");
    }
    let longer = format!("Bearer {key}x");
    let shorter = format!("Bearer {}", &key[..key.len() - 1]);
    let cased = format!("Bearer {}", key.to_uppercase());
    for value in [
        "Bearer sk-other",
        &longer,
        &shorter,
        &cased,
        "Bearer \u{0}",
        "Bearer a b",
    ] {
        assert_eq!(check(Some(value)), "NotAccepted", "{value:?}");
    }
    for value in [
        format!("Bearer {key}"),
        format!("bearer {key}"),
        format!("BEARER   {key} "),
    ] {
        assert_eq!(check(Some(&value)), "agent", "{value:?}");
    }
    assert_eq!(name(ring.check_key(key.as_bytes(), now())), "agent");
    assert_eq!(name(ring.check_key(b"", now())), "NotAccepted");
    assert_eq!(name(ring.check(Some(b"Bearer \xff\xfe"), now())), "NotAccepted");
}

#[test]
fn unknown_expired_and_revoked_keys_look_alike() {
    let folder = tempfile::tempdir().unwrap();
    let short = NewKey {
        expires_in: Some(Duration::from_secs(60)),
        ..new_key("short")
    };
    let (ring, secrets) = ring(folder.path(), &[short, new_key("gone"), new_key("stays")]);
    let at = |seconds: i64| Timestamp::from_second(now().as_second() + seconds).unwrap();
    assert_eq!(name(ring.check(Some(&authorization(&secrets[0])), at(59))), "short");
    KeyFile::revoke(ring.path(), "gone").unwrap();
    assert_eq!(
        name(ring.check(Some(&authorization(&secrets[1])), at(59))),
        "gone",
        "before the reload"
    );
    assert_eq!(ring.reload().unwrap(), 2);
    let unknown = ring.check(Some(b"Bearer sk-unknown"), at(60));
    assert_eq!(unknown, KeyVerdict::NotAccepted);
    assert_eq!(ring.check(Some(&authorization(&secrets[0])), at(60)), unknown);
    assert_eq!(ring.check(Some(&authorization(&secrets[1])), at(60)), unknown);
    assert_eq!(name(ring.check(Some(&authorization(&secrets[2])), at(60))), "stays");
}

#[test]
fn every_key_of_many_is_found() {
    let folder = tempfile::tempdir().unwrap();
    let keys: Vec<NewKey> = (0..20).map(|index| new_key(&format!("key-{index}"))).collect();
    let (ring, secrets) = ring(folder.path(), &keys);
    for (key, secret) in keys.iter().zip(&secrets) {
        assert_eq!(name(ring.check_key(secret.reveal().as_bytes(), now())), key.name);
    }
}

#[test]
fn a_key_carries_its_models_and_grants() {
    let folder = tempfile::tempdir().unwrap();
    let limited = NewKey {
        models: vec!["small".to_owned()],
        grants: vec![Grant::RemoteMedia],
        reasoning: Some(ReasoningNames::Inline),
        release: Some(ReleaseMode::Certain),
        ..new_key("limited")
    };
    let (ring, secrets) = ring(folder.path(), &[limited, new_key("free")]);
    let KeyVerdict::Accepted(id) = ring.check(Some(&authorization(&secrets[0])), now()) else {
        panic!("refused")
    };
    assert!(id.may_use("small") && !id.may_use("large"));
    assert_eq!(id.grants, [Grant::RemoteMedia]);
    assert_eq!(id.reasoning, Some(ReasoningNames::Inline));
    assert_eq!(id.release, Some(ReleaseMode::Certain));
    let KeyVerdict::Accepted(id) = ring.check(Some(&authorization(&secrets[1])), now()) else {
        panic!("refused")
    };
    assert!(id.may_use("large") && id.grants.is_empty() && id.release.is_none());
}

#[test]
fn a_key_of_the_environment_is_accepted_beside_the_file() {
    let folder = tempfile::tempdir().unwrap();
    let env = |name: &str| (name == "VLLM_MEDIUM_API_KEY").then(|| OsString::from("sk-from-env\n"));
    let opened = KeyRing::open(&AuthConfig::default(), folder.path(), env).unwrap();
    assert!(opened.first.is_none(), "no key is made where one is given");
    assert!(!folder.path().join("keys.toml").exists());
    assert_eq!(name(opened.ring.check(Some(b"Bearer sk-from-env"), now())), "env");
    let secret = KeyFile::add(opened.ring.path(), &new_key("agent"), now()).unwrap();
    assert_eq!(opened.ring.reload().unwrap(), 1);
    assert_eq!(name(opened.ring.check(Some(&authorization(&secret)), now())), "agent");
    assert_eq!(name(opened.ring.check(Some(b"Bearer sk-from-env"), now())), "env");
    let debug = format!("{:?}", opened.ring);
    assert!(!debug.contains("sk-from-env") && !debug.contains("digest"), "{debug}");
}

#[test]
fn an_empty_environment_variable_is_no_key() {
    let folder = tempfile::tempdir().unwrap();
    let opened = KeyRing::open(&AuthConfig::default(), folder.path(), |_| Some(OsString::from(" \n"))).unwrap();
    assert!(opened.first.is_some());
    assert_eq!(name(opened.ring.check(Some(b"Bearer  "), now())), "NotBearer");
    assert_eq!(name(opened.ring.check_key(b"", now())), "NotAccepted");
}

#[test]
fn the_first_start_makes_one_key_and_keeps_only_its_hash() {
    let folder = tempfile::tempdir().unwrap();
    let state = folder.path().join("state/sluice");
    let opened = KeyRing::open(&AuthConfig::default(), &state, no_env).unwrap();
    let secret = opened.first.expect("a key was made");
    assert_eq!(name(opened.ring.check(Some(&authorization(&secret)), now())), "first");
    let file = state.join("keys.toml");
    let text = fs::read_to_string(&file).unwrap();
    assert!(text.contains("sha256:") && !text.contains(secret.reveal()), "{text}");
    assert_eq!(fs::metadata(&file).unwrap().permissions().mode() & 0o7777, 0o600);
    assert_eq!(fs::metadata(&state).unwrap().permissions().mode() & 0o7777, 0o700);
    // The second start shows nothing.
    let again = KeyRing::open(&AuthConfig::default(), &state, no_env).unwrap();
    assert!(again.first.is_none());
    assert_eq!(name(again.ring.check(Some(&authorization(&secret)), now())), "first");
}

#[test]
fn without_any_key_nothing_starts_but_by_the_config_s_word() {
    let folder = tempfile::tempdir().unwrap();
    let (ring, secrets) = ring(folder.path(), &[new_key("only")]);
    KeyFile::revoke(ring.path(), "only").unwrap();
    let error = KeyRing::open(&AuthConfig::default(), folder.path(), no_env).unwrap_err();
    assert!(matches!(error, KeyFileError::NoKey(_)), "{error}");
    assert!(error.to_string().contains("sluice key new"), "{error}");
    let open = AuthConfig {
        allow_no_key: true,
        ..AuthConfig::default()
    };
    let opened = KeyRing::open(&open, folder.path(), no_env).unwrap();
    assert!(opened.first.is_none());
    assert_eq!(name(opened.ring.check(None, now())), "Open");
    assert_eq!(
        name(opened.ring.check(Some(&authorization(&secrets[0])), now())),
        "Open"
    );
    // A key that is known still says whose request it is.
    let secret = KeyFile::add(opened.ring.path(), &new_key("agent"), now()).unwrap();
    opened.ring.reload().unwrap();
    assert_eq!(name(opened.ring.check(Some(&authorization(&secret)), now())), "agent");
}

#[test]
fn a_broken_or_missing_file_leaves_the_keys_in_effect() {
    let folder = tempfile::tempdir().unwrap();
    let (ring, secrets) = ring(folder.path(), &[new_key("agent")]);
    let hash = "sha256:0000000000000000000000000000000000000000000000000000000000000000";
    let entry = |name: &str, hash: &str| {
        format!("[[key]]\nname = \"{name}\"\nhash = \"{hash}\"\ncreated = \"2026-01-01T00:00:00Z\"\n")
    };
    let twice = entry("a", hash) + &entry("a", hash);
    for (text, expect) in [
        ("[[key]\n", "not TOML"),
        ("[[key]]\nname = \"a\"\n", "`hash` is missing"),
        (&entry("a", "sk-in-clear"), "has no valid hash"),
        (&entry("a", &hash.replace("00", "0")), "has no valid hash"),
        (&entry("a b", hash), "no valid name"),
        (&twice, "stands there twice"),
        (&(entry("a", hash) + "expire = 1\n"), "did you mean `expires`?"),
        (&(entry("a", hash) + "expires = \"tomorrow\"\n"), "expected an instant"),
    ] {
        fs::write(ring.path(), text).unwrap();
        let error = ring.reload().unwrap_err().to_string();
        assert!(error.contains(expect) && error.contains("keys.toml"), "{text}\n{error}");
        assert!(!error.contains("sk-in-clear"), "{error}");
        assert_eq!(name(ring.check(Some(&authorization(&secrets[0])), now())), "agent");
    }
    fs::remove_file(ring.path()).unwrap();
    assert!(matches!(ring.reload(), Err(KeyFileError::Gone(_))));
    assert_eq!(name(ring.check(Some(&authorization(&secrets[0])), now())), "agent");
}

#[test]
fn the_file_is_rewritten_whole_with_mode_0600_and_through_a_link() {
    let folder = tempfile::tempdir().unwrap();
    let real = folder.path().join("real.toml");
    fs::write(&real, "").unwrap();
    fs::set_permissions(&real, fs::Permissions::from_mode(0o644)).unwrap();
    let link = folder.path().join("keys.toml");
    std::os::unix::fs::symlink("real.toml", &link).unwrap();
    // What a crash left behind doesn't stop the next change.
    fs::write(folder.path().join("real.toml.new"), "half").unwrap();
    KeyFile::add(&link, &new_key("agent"), now()).unwrap();
    assert!(link.is_symlink());
    assert_eq!(fs::metadata(&real).unwrap().permissions().mode() & 0o7777, 0o600);
    assert!(!folder.path().join("real.toml.new").exists());
    assert_eq!(KeyFile::read(&link).unwrap().unwrap().keys()[0].name, "agent");
}

#[test]
fn writers_at_the_same_time_lose_no_key() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("keys.toml");
    std::thread::scope(|scope| {
        for index in 0..8 {
            let path = &path;
            scope.spawn(move || KeyFile::add(path, &new_key(&format!("k{index}")), now()).unwrap());
        }
    });
    assert_eq!(KeyFile::read(&path).unwrap().unwrap().keys().len(), 8);
}

#[test]
fn a_name_is_unique_and_plain_and_an_unknown_one_is_answered_with_the_known() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("keys.toml");
    KeyFile::add(&path, &new_key("agent"), now()).unwrap();
    assert!(matches!(
        KeyFile::add(&path, &new_key("agent"), now()),
        Err(KeyFileError::Taken(_))
    ));
    for bad in ["", "two words", "ä", &"x".repeat(65)] {
        assert!(
            matches!(KeyFile::add(&path, &new_key(bad), now()), Err(KeyFileError::Name(_))),
            "{bad:?}"
        );
    }
    let error = KeyFile::revoke(&path, "agnet").unwrap_err().to_string();
    assert_eq!(error, "there is no key \"agnet\"; there are agent");
    let far = NewKey {
        expires_in: Some(Duration::MAX),
        ..new_key("far")
    };
    assert!(matches!(KeyFile::add(&path, &far, now()), Err(KeyFileError::Expiry)));
    assert_eq!(KeyFile::read(&path).unwrap().unwrap().keys().len(), 1);
}

#[test]
fn anthropic_s_header_is_judged_beside_the_other() {
    let folder = tempfile::tempdir().unwrap();
    let (ring, secrets) = ring(folder.path(), &[new_key("agent")]);
    let key = secrets[0].reveal().as_bytes();
    let bearer = authorization(&secrets[0]);
    let bearer = bearer.as_slice();
    for (authorization, api_key, expect) in [
        (None, Some(key), "agent"),
        (Some(bearer), None, "agent"),
        (Some(bearer), Some(b"sk-stale".as_slice()), "agent"),
        (Some(b"Bearer sk-stale".as_slice()), Some(key), "agent"),
        (None, None, "Missing"),
        (None, Some(b"sk-stale"), "NotAccepted"),
        (Some(b"Bearer sk-stale"), Some(b"sk-stale"), "NotAccepted"),
        (Some(b"Basic x"), Some(b"sk-stale"), "NotBearer"),
    ] {
        assert_eq!(name(ring.judge(authorization, api_key)), expect);
    }
}

/// With the watch of the configuration: a key made or revoked by `sluice key` counts without a restart.
#[test]
fn a_changed_key_file_takes_effect_by_itself() {
    let folder = tempfile::tempdir().unwrap();
    let (ring, secrets) = ring(folder.path(), &[new_key("old")]);
    let ring = Arc::new(ring);
    let (send, reloads) = std::sync::mpsc::channel();
    let watched = Arc::clone(&ring);
    let path = ring.path().to_path_buf();
    let _watch = crate::config::Watch::start(vec![path.clone()], move || {
        let _ = send.send(watched.reload().unwrap());
    })
    .unwrap();
    let wait_for = |keys: usize| {
        let patience = Duration::from_secs(20);
        while reloads.recv_timeout(patience).expect("the watch sees the change") != keys {}
    };
    wait_for(1);
    let new = KeyFile::add(&path, &new_key("new"), now()).unwrap();
    wait_for(2);
    assert_eq!(name(ring.check(Some(&authorization(&new)), now())), "new");
    KeyFile::revoke(&path, "old").unwrap();
    wait_for(1);
    assert_eq!(
        name(ring.check(Some(&authorization(&secrets[0])), now())),
        "NotAccepted"
    );
    assert_eq!(name(ring.check(Some(&authorization(&new)), now())), "new");
}
