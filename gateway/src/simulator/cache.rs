//! The KV-cache model: a pool of blocks, found again by prefix hash, given up in LRU order.
//!
//! As in vLLM, a block that no sequence uses stays findable until its place is needed; a free block at the head of the
//! queue is the next to lose its content. Freed sequences put their last block first, so that a shared beginning
//! outlives the tails that grew from it. Nothing here knows tokens or time: block hashes in, block numbers out.
use foldhash::HashMap;

/// No neighbour.
const NONE: u32 = u32::MAX;

/// One block's place.
#[derive(Debug, Clone, Copy)]
struct Slot {
    hash: Option<u64>,
    users: u32,
    before: u32,
    after: u32,
}

/// All blocks of one simulated engine.
#[derive(Debug)]
pub(super) struct BlockPool {
    slots: Vec<Slot>,
    by_hash: HashMap<u64, u32>,
    head: u32,
    tail: u32,
    free: u32,
    remembers: bool,
}

impl BlockPool {
    /// A pool of `blocks` empty blocks; with `remembers` false nothing is ever found again
    /// (`--no-enable-prefix-caching`).
    pub(super) fn new(blocks: u32, remembers: bool) -> Self {
        let mut pool = Self {
            slots: vec![
                Slot {
                    hash: None,
                    users: 0,
                    before: NONE,
                    after: NONE
                };
                blocks as usize
            ],
            by_hash: HashMap::default(),
            head: NONE,
            tail: NONE,
            free: 0,
            remembers,
        };
        (0..blocks).for_each(|block| pool.link_last(block));
        pool
    }

    /// How many of the leading `hashes` are in the cache.
    pub(super) fn resident(&self, hashes: &[u64]) -> usize {
        hashes
            .iter()
            .take_while(|hash| self.by_hash.contains_key(*hash))
            .count()
    }

    /// Takes the blocks of `hashes` (all resident) and `fresh` empty ones, or nothing at all if there aren't enough.
    pub(super) fn take(&mut self, hashes: &[u64], fresh: u32, into: &mut Vec<u32>) -> bool {
        let known: Vec<u32> = hashes
            .iter()
            .filter_map(|hash| self.by_hash.get(hash).copied())
            .collect();
        let woken = known
            .iter()
            .filter(|block| self.slots[**block as usize].users == 0)
            .count() as u32;
        if known.len() != hashes.len() || woken + fresh > self.free {
            return false;
        }
        for block in known {
            if self.slots[block as usize].users == 0 {
                self.unlink(block);
            }
            self.slots[block as usize].users += 1;
            into.push(block);
        }
        for _ in 0..fresh {
            let block = self.head;
            self.unlink(block);
            if let Some(hash) = self.slots[block as usize].hash.take() {
                self.by_hash.remove(&hash);
            }
            self.slots[block as usize].users = 1;
            into.push(block);
        }
        true
    }

    /// Makes a full block findable. The first block with a content keeps its name; a double stays nameless.
    pub(super) fn publish(&mut self, block: u32, hash: u64) {
        let slot = &mut self.slots[block as usize];
        if self.remembers && slot.hash.is_none() && !self.by_hash.contains_key(&hash) {
            slot.hash = Some(hash);
            self.by_hash.insert(hash, block);
        }
    }

    /// Gives a sequence's blocks back, its last first.
    pub(super) fn release(&mut self, blocks: &mut Vec<u32>) {
        while let Some(block) = blocks.pop() {
            let slot = &mut self.slots[block as usize];
            slot.users -= 1;
            if slot.users == 0 {
                self.link_last(block);
            }
        }
    }

    /// Forgets all content; blocks in use stay in use.
    pub(super) fn forget(&mut self) {
        self.by_hash.clear();
        self.slots.iter_mut().for_each(|slot| slot.hash = None);
    }

    /// Blocks in the pool.
    pub(super) fn size(&self) -> u32 {
        self.slots.len() as u32
    }

    /// Blocks that no sequence uses (remembered ones among them).
    pub(super) fn free(&self) -> u32 {
        self.free
    }

    fn link_last(&mut self, block: u32) {
        self.slots[block as usize].before = self.tail;
        self.slots[block as usize].after = NONE;
        match self.tail {
            NONE => self.head = block,
            tail => self.slots[tail as usize].after = block,
        }
        self.tail = block;
        self.free += 1;
    }

    fn unlink(&mut self, block: u32) {
        let Slot { before, after, .. } = self.slots[block as usize];
        match before {
            NONE => self.head = after,
            before => self.slots[before as usize].after = after,
        }
        match after {
            NONE => self.tail = before,
            after => self.slots[after as usize].before = before,
        }
        self.free -= 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Takes what is resident of `hashes` and fresh blocks for the rest, and publishes them.
    fn fill(pool: &mut BlockPool, hashes: &[u64]) -> (usize, Vec<u32>) {
        let found = pool.resident(hashes);
        let mut blocks = Vec::new();
        assert!(pool.take(&hashes[..found], (hashes.len() - found) as u32, &mut blocks));
        blocks
            .iter()
            .zip(hashes)
            .for_each(|(block, hash)| pool.publish(*block, *hash));
        (found, blocks)
    }

    #[test]
    fn a_freed_prefix_is_found_again_and_shared() {
        let mut pool = BlockPool::new(8, true);
        let (found, mut first) = fill(&mut pool, &[1, 2, 3]);
        assert_eq!((found, pool.free()), (0, 5));
        pool.release(&mut first);
        assert_eq!(pool.free(), 8);
        let (found, mut second) = fill(&mut pool, &[1, 2, 9]);
        let (shared, mut third) = fill(&mut pool, &[1, 2, 8]);
        assert_eq!((found, shared, pool.free()), (2, 2, 4));
        pool.release(&mut second);
        assert_eq!(pool.free(), 5, "blocks 1 and 2 are still used by the third");
        pool.release(&mut third);
        assert_eq!(pool.free(), 8);
    }

    #[test]
    fn the_tail_is_lost_before_the_beginning() {
        let mut pool = BlockPool::new(4, true);
        let (_, mut old) = fill(&mut pool, &[1, 2, 3]);
        pool.release(&mut old);
        let (_, _held) = fill(&mut pool, &[7, 8]);
        assert_eq!(pool.resident(&[1, 2, 3]), 2, "one never used block and the tail went");
    }

    #[test]
    fn too_little_room_takes_nothing() {
        let mut pool = BlockPool::new(3, true);
        let (_, held) = fill(&mut pool, &[1, 2]);
        let mut more = Vec::new();
        assert!(!pool.take(&[1], 2, &mut more));
        assert!(more.is_empty() && pool.free() == 1 && held.len() == 2);
    }

    #[test]
    fn without_prefix_caching_nothing_is_found() {
        let mut pool = BlockPool::new(4, false);
        let (_, mut blocks) = fill(&mut pool, &[1, 2]);
        pool.release(&mut blocks);
        assert_eq!(pool.resident(&[1, 2]), 0);
    }

    #[test]
    fn every_block_is_free_or_used_whatever_happens() {
        let mut pool = BlockPool::new(16, true);
        let mut held: Vec<Vec<u32>> = Vec::new();
        let mut dice = 12345_u64;
        for _ in 0..5_000 {
            dice = dice
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            let roll = (dice >> 33) as usize;
            if roll.is_multiple_of(2) && !held.is_empty() {
                let mut blocks = held.swap_remove(roll / 2 % held.len());
                pool.release(&mut blocks);
            } else {
                let hashes: Vec<u64> = (0..(roll % 5) as u64)
                    .map(|i| i + (roll as u64 / 8 % 3) * 100)
                    .collect();
                let found = pool.resident(&hashes);
                let mut blocks = Vec::new();
                if pool.take(&hashes[..found], (hashes.len() - found) as u32, &mut blocks) {
                    blocks
                        .iter()
                        .zip(&hashes)
                        .for_each(|(block, hash)| pool.publish(*block, *hash));
                    held.push(blocks);
                }
            }
            let mut used: Vec<u32> = held.iter().flatten().copied().collect();
            used.sort_unstable();
            used.dedup();
            assert_eq!(used.len() as u32 + pool.free(), 16);
            let unused = pool.slots.iter().filter(|slot| slot.users == 0).count() as u32;
            assert_eq!(unused, pool.free());
        }
    }
}
