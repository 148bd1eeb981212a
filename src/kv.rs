//! Which pages of a KV cache belong to whom, and which of them hold a prefix that can be found again.
//!
//! Bookkeeping only: the bytes live in the backend. A page holds [`PAGE_TOKENS`] positions of every layer. A full page can
//! be published under a [`PrefixKey`], a hash over *everything that determined its contents*: the mixture of adapters
//! (content, weight, order) and all tokens up to its end. So a prefix is reused exactly when it is the same computation,
//! and never across adapters. A page that nobody uses keeps its contents until its room is needed; the one unused for
//! longest goes first.

use std::collections::{BTreeMap, HashMap};

use sha2::{Digest, Sha256};

/// Positions of a page.
pub const PAGE_TOKENS: usize = 32;

/// Pages that hold that many tokens.
pub fn pages_for(tokens: usize) -> usize {
    tokens.div_ceil(PAGE_TOKENS)
}

/// Identity of a computed prefix: a SHA-256 chained page by page, so that equal keys mean equal computations.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct PrefixKey([u8; 32]);

impl PrefixKey {
    /// The empty prefix under a mixture, given as (content hash, weight) in the order of the request.
    pub fn root<'a>(mixture: impl IntoIterator<Item = (&'a str, f32)>) -> Self {
        let mut hash = Sha256::new();
        for (content_hash, weight) in mixture {
            hash.update((content_hash.len() as u64).to_le_bytes());
            hash.update(content_hash.as_bytes());
            hash.update(weight.to_bits().to_le_bytes());
        }
        Self(hash.finalize().into())
    }

    /// This prefix, longer by the tokens of one page.
    pub fn extend(&self, tokens: &[u32]) -> Self {
        let mut hash = Sha256::new();
        hash.update(self.0);
        for token in tokens {
            hash.update(token.to_le_bytes());
        }
        Self(hash.finalize().into())
    }
}

#[derive(Clone, Debug, Default)]
struct Page {
    users: u32,
    key: Option<PrefixKey>,
    /// When it lost its last user; its place in `idle` while it has none and a key.
    idle_since: u64,
}

/// The pages of one KV cache.
#[derive(Debug)]
pub struct KvPool {
    pages: Vec<Page>,
    /// Pages without users and without contents worth keeping.
    empty: Vec<u32>,
    /// Pages without users that hold a prefix, by the time they became idle.
    idle: BTreeMap<u64, u32>,
    by_key: HashMap<PrefixKey, u32>,
    clock: u64,
    keeps_prefixes: bool,
}

impl KvPool {
    /// A pool of that many pages, all empty.
    pub fn new(pages: usize, keeps_prefixes: bool) -> Self {
        Self {
            pages: vec![Page::default(); pages],
            empty: (0..pages as u32).rev().collect(),
            idle: BTreeMap::new(),
            by_key: HashMap::new(),
            clock: 0,
            keeps_prefixes,
        }
    }

    /// Pages in all.
    pub fn total(&self) -> usize {
        self.pages.len()
    }

    /// Pages nobody uses, those that hold a prefix included.
    pub fn free(&self) -> usize {
        self.empty.len() + self.idle.len()
    }

    /// Pages that hold a prefix that can be found.
    pub fn prefix_pages(&self) -> usize {
        self.by_key.len()
    }

    /// The pages that already hold the beginning of `tokens` under `root`, each now used once more, and the key they end in.
    ///
    /// At least one token is left to compute, since its logits are wanted.
    pub fn find_prefix(&mut self, root: PrefixKey, tokens: &[u32]) -> (Vec<u32>, PrefixKey) {
        let (mut key, mut found) = (root, Vec::new());
        let reusable = tokens.len().saturating_sub(1) / PAGE_TOKENS;
        for page_tokens in tokens.chunks_exact(PAGE_TOKENS).take(reusable) {
            let next = key.extend(page_tokens);
            let Some(&page) = self.by_key.get(&next) else { break };
            self.use_again(page);
            found.push(page);
            key = next;
        }
        (found, key)
    }

    /// A page to write to, used once; `None` if all pages are in use.
    pub fn allocate(&mut self) -> Option<u32> {
        let page = match self.empty.pop() {
            Some(page) => page,
            None => {
                let (_, page) = self.idle.pop_first()?;
                if let Some(key) = self.pages[page as usize].key.take() {
                    self.by_key.remove(&key);
                }
                page
            }
        };
        self.pages[page as usize].users = 1;
        Some(page)
    }

    /// Lets a page that is full and computed be found under `key`. A page that is found there already stays the one.
    pub fn publish(&mut self, page: u32, key: PrefixKey) {
        if self.keeps_prefixes && self.pages[page as usize].key.is_none() && !self.by_key.contains_key(&key) {
            self.by_key.insert(key, page);
            self.pages[page as usize].key = Some(key);
        }
    }

    /// Ends one use of each page.
    ///
    /// # Panics
    /// If a page is not in use: a page was given back twice.
    pub fn release(&mut self, pages: impl IntoIterator<Item = u32>) {
        for id in pages {
            let page = &mut self.pages[id as usize];
            assert!(page.users > 0, "page {id} was given back twice");
            page.users -= 1;
            if page.users > 0 {
                continue;
            }
            if page.key.is_some() {
                self.clock += 1;
                page.idle_since = self.clock;
                self.idle.insert(self.clock, id);
            } else {
                self.empty.push(id);
            }
        }
    }

    /// Forgets every prefix; pages in use stay in use.
    pub fn clear_prefixes(&mut self) {
        self.by_key.clear();
        self.empty.extend(std::mem::take(&mut self.idle).into_values());
        for page in &mut self.pages {
            page.key = None;
        }
    }

    fn use_again(&mut self, id: u32) {
        let page = &mut self.pages[id as usize];
        if page.users == 0 {
            self.idle.remove(&page.idle_since);
        }
        page.users += 1;
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn tokens(n: usize) -> Vec<u32> {
        (0..n as u32).collect()
    }

    /// Computes `tokens` as an engine would and gives all pages back.
    fn run(pool: &mut KvPool, root: PrefixKey, tokens: &[u32]) -> usize {
        let (mut pages, mut key) = pool.find_prefix(root, tokens);
        let found = pages.len();
        while pages.len() < pages_for(tokens.len()) {
            pages.push(pool.allocate().expect("room"));
        }
        for (i, page_tokens) in tokens.chunks_exact(PAGE_TOKENS).enumerate().skip(found) {
            key = key.extend(page_tokens);
            pool.publish(pages[i], key);
        }
        pool.release(pages);
        found
    }

    #[test]
    fn a_prefix_is_found_again_by_the_same_mixture_only() {
        let mut pool = KvPool::new(16, true);
        let base = PrefixKey::root([]);
        let text = tokens(3 * PAGE_TOKENS + 5);
        assert_eq!(run(&mut pool, base, &text), 0);
        assert_eq!(run(&mut pool, base, &text), 3);
        assert_eq!(run(&mut pool, PrefixKey::root([("sql", 1.0)]), &text), 0);
        assert_eq!(run(&mut pool, PrefixKey::root([("sql", 0.5)]), &text), 0);
        assert_eq!(run(&mut pool, base, &text[..PAGE_TOKENS + 1]), 1);
    }

    #[test]
    fn order_and_split_of_a_mixture_are_part_of_its_key() {
        let ab = PrefixKey::root([("a", 0.5), ("b", 0.5)]);
        assert_ne!(ab, PrefixKey::root([("b", 0.5), ("a", 0.5)]));
        assert_ne!(PrefixKey::root([("ab", 1.0)]), PrefixKey::root([("a", 1.0), ("b", 1.0)]));
        assert_ne!(PrefixKey::root([("a", 0.0)]), PrefixKey::root([]));
    }

    #[test]
    fn the_last_token_of_a_prompt_is_always_computed() {
        let mut pool = KvPool::new(8, true);
        let base = PrefixKey::root([]);
        run(&mut pool, base, &tokens(2 * PAGE_TOKENS));
        assert_eq!(run(&mut pool, base, &tokens(2 * PAGE_TOKENS)), 1);
    }

    #[test]
    fn the_prefix_unused_for_longest_makes_room_first() {
        let mut pool = KvPool::new(3, true);
        let base = PrefixKey::root([]);
        let text = |start: u32| (start..start + PAGE_TOKENS as u32 + 1).collect::<Vec<_>>();
        run(&mut pool, base, &text(0)); // one page kept, one given back empty
        run(&mut pool, base, &text(1000));
        run(&mut pool, base, &text(0)); // used again: now 1000 is the oldest
        run(&mut pool, base, &text(2000));
        assert_eq!(run(&mut pool, base, &text(0)), 1);
        assert_eq!(run(&mut pool, base, &text(1000)), 0);
    }

    #[test]
    fn without_prefixes_nothing_is_found() {
        let mut pool = KvPool::new(8, false);
        let base = PrefixKey::root([]);
        run(&mut pool, base, &tokens(100));
        assert_eq!(run(&mut pool, base, &tokens(100)), 0);
        assert_eq!(pool.prefix_pages(), 0);
    }

    proptest! {
        #[test]
        fn pages_are_never_lost_nor_owned_twice(lengths in proptest::collection::vec((1usize..200, 0u32..3), 1..40)) {
            let mut pool = KvPool::new(20, true);
            let mut held: Vec<Vec<u32>> = Vec::new();
            for (length, text) in lengths {
                let tokens: Vec<u32> = (0..length as u32).map(|i| i * 3 + text).collect();
                let (mut pages, mut key) = pool.find_prefix(PrefixKey::root([]), &tokens);
                let found = pages.len();
                while pages.len() < pages_for(length) {
                    match pool.allocate() {
                        Some(page) => {
                            prop_assert!(held.iter().flatten().chain(&pages).all(|&p| p != page));
                            pages.push(page);
                        }
                        None => break,
                    }
                }
                for (i, page_tokens) in tokens.chunks_exact(PAGE_TOKENS).enumerate().take(pages.len()) {
                    let next = if i < found { continue } else { key.extend(page_tokens) };
                    pool.publish(pages[i], next);
                    key = next;
                }
                held.push(pages);
                if held.len() > 3 {
                    pool.release(held.remove(0));
                }
            }
            for pages in held {
                pool.release(pages);
            }
            prop_assert_eq!(pool.free(), pool.total());
            pool.clear_prefixes();
            prop_assert_eq!(pool.empty.len(), pool.total());
        }
    }
}
