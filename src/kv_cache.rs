//! Which pages of a KV cache are in use, and which hold a prefix that can be reused (paged KV cache, prefix caching).
//!
//! Bookkeeping only: keys and values live in the backend. A page holds [`PAGE_TOKENS`] positions of every layer. A full page
//! can be published under a [`PrefixKey`], a hash of *everything that determined its contents*: all tokens up to its end, and
//! the adapters (content, weight, order) that acted on them, each with the token from which it acted. So a prefix is reused
//! exactly when it is the same computation: never across adapters, and shared with the base until an aLoRA adapter is
//! invoked. A page that no sequence uses keeps its contents until the space is needed; the least recently used goes first.

use std::collections::{BTreeMap, HashMap};

use sha2::{Digest, Sha256};

/// Positions of a page.
pub const PAGE_TOKENS: usize = 32;

/// Number of pages that `tokens` tokens need.
pub fn pages_for(tokens: usize) -> usize {
    tokens.div_ceil(PAGE_TOKENS)
}

/// Identity of a computed prefix: a SHA-256 chained page by page, so that equal keys mean equal computations.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct PrefixKey([u8; 32]);

impl PrefixKey {
    /// The empty prefix.
    pub const EMPTY: Self = Self([0; 32]);

    /// This prefix extended by the tokens of one page and the adapters that acted on them, in the order of the request: the
    /// first of the tokens on which each acted, its content hash and its weight.
    pub fn extend<'a>(&self, tokens: &[u32], adapters: impl IntoIterator<Item = (usize, &'a str, f32)>) -> Self {
        let mut hash = Sha256::new();
        hash.update(self.0);
        hash.update((tokens.len() as u64).to_le_bytes());
        for token in tokens {
            hash.update(token.to_le_bytes());
        }
        for (first, content_hash, weight) in adapters {
            hash.update((first as u64).to_le_bytes());
            hash.update((content_hash.len() as u64).to_le_bytes());
            hash.update(content_hash.as_bytes());
            hash.update(weight.to_bits().to_le_bytes());
        }
        Self(hash.finalize().into())
    }
}

#[derive(Clone, Debug, Default)]
struct Page {
    users: u32,
    key: Option<PrefixKey>,
    /// When it lost its last user; its key in `idle` while it has no users and a prefix.
    idle_since: u64,
}

/// The pages of one KV cache.
#[derive(Debug)]
pub struct PagePool {
    pages: Vec<Page>,
    /// Pages without users and without a prefix.
    empty: Vec<u32>,
    /// Pages without users that hold a prefix, ordered by when they became idle.
    idle: BTreeMap<u64, u32>,
    by_key: HashMap<PrefixKey, u32>,
    clock: u64,
    keeps_prefixes: bool,
}

impl PagePool {
    /// A pool of `pages` empty pages.
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

    /// Number of pages.
    pub fn total(&self) -> usize {
        self.pages.len()
    }

    /// Pages that no sequence uses, including those that hold a prefix.
    pub fn free(&self) -> usize {
        self.empty.len() + self.idle.len()
    }

    /// Pages that hold a prefix that can be reused.
    pub fn prefix_pages(&self) -> usize {
        self.by_key.len()
    }

    /// The pages that already hold the longest prefix of a sequence of `tokens` tokens, each with one more user, and the
    /// key of that prefix. `extend` returns the key of the page with a given index from the key before it.
    ///
    /// At least one token is left to compute, since its logits are needed.
    pub fn find_prefix(
        &mut self,
        tokens: usize,
        extend: impl Fn(&PrefixKey, usize) -> PrefixKey,
    ) -> (Vec<u32>, PrefixKey) {
        let (mut key, mut found) = (PrefixKey::EMPTY, Vec::new());
        for index in 0..tokens.saturating_sub(1) / PAGE_TOKENS {
            let next = extend(&key, index);
            let Some(&page) = self.by_key.get(&next) else { break };
            self.add_user(page);
            found.push(page);
            key = next;
        }
        (found, key)
    }

    /// A page to write to, with one user; `None` if all pages are in use.
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

    /// Makes a full, computed page available under `key`. A page already published under that key stays.
    pub fn publish(&mut self, page: u32, key: PrefixKey) {
        if self.keeps_prefixes && self.pages[page as usize].key.is_none() && !self.by_key.contains_key(&key) {
            self.by_key.insert(key, page);
            self.pages[page as usize].key = Some(key);
        }
    }

    /// Removes one user from each page.
    ///
    /// # Panics
    /// If a page is not in use.
    pub fn release(&mut self, pages: impl IntoIterator<Item = u32>) {
        for id in pages {
            let page = &mut self.pages[id as usize];
            assert!(page.users > 0, "page {id} was released twice");
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

    /// Forgets all prefixes; pages in use stay in use.
    pub fn clear_prefixes(&mut self) {
        self.by_key.clear();
        self.empty.extend(std::mem::take(&mut self.idle).into_values());
        for page in &mut self.pages {
            page.key = None;
        }
    }

    fn add_user(&mut self, id: u32) {
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

    const BASE: Adapters<'_> = &[];

    fn tokens(n: usize) -> Vec<u32> {
        (0..n as u32).collect()
    }

    /// Adapters of a sequence: first token on which each acts, content hash, weight.
    type Adapters<'a> = &'a [(usize, &'a str, f32)];

    /// The key of a page, given the key before it.
    fn page_key(key: &PrefixKey, tokens: &[u32], adapters: Adapters<'_>, index: usize) -> PrefixKey {
        let page = index * PAGE_TOKENS..(index + 1) * PAGE_TOKENS;
        let acting = adapters.iter().filter(|(first, ..)| *first < page.end);
        let acting = acting.map(|&(first, hash, weight)| (first.saturating_sub(page.start), hash, weight));
        key.extend(&tokens[page.clone()], acting)
    }

    /// Computes `tokens` as an engine would and releases all pages.
    fn run(pool: &mut PagePool, adapters: Adapters<'_>, tokens: &[u32]) -> usize {
        let (mut pages, mut key) = pool.find_prefix(tokens.len(), |key, i| page_key(key, tokens, adapters, i));
        let found = pages.len();
        while pages.len() < pages_for(tokens.len()) {
            pages.push(pool.allocate().expect("a free page"));
        }
        for (i, &page) in pages.iter().enumerate().take(tokens.len() / PAGE_TOKENS).skip(found) {
            key = page_key(&key, tokens, adapters, i);
            pool.publish(page, key);
        }
        pool.release(pages);
        found
    }

    #[test]
    fn a_prefix_is_reused_only_by_the_same_mixture() {
        let mut pool = PagePool::new(16, true);
        let text = tokens(3 * PAGE_TOKENS + 5);
        assert_eq!(run(&mut pool, BASE, &text), 0);
        assert_eq!(run(&mut pool, BASE, &text), 3);
        assert_eq!(run(&mut pool, &[(0, "sql", 1.0)], &text), 0);
        assert_eq!(run(&mut pool, &[(0, "sql", 0.5)], &text), 0);
        assert_eq!(run(&mut pool, BASE, &text[..PAGE_TOKENS + 1]), 1);
    }

    #[test]
    fn until_an_adapter_is_invoked_its_prefix_is_shared_with_the_base() {
        let mut pool = PagePool::new(32, true);
        let text = tokens(4 * PAGE_TOKENS + 5);
        let invoked = 2 * PAGE_TOKENS + 3;
        assert_eq!(run(&mut pool, &[(invoked, "sql", 1.0)], &text), 0);
        assert_eq!(run(&mut pool, BASE, &text), 2);
        assert_eq!(run(&mut pool, &[(invoked, "sql", 1.0)], &text), 4);
        assert_eq!(run(&mut pool, &[(invoked + 1, "sql", 1.0)], &text), 2);
        assert_eq!(run(&mut pool, &[(2 * PAGE_TOKENS, "wit", 1.0)], &text), 2);
    }

    #[test]
    fn order_and_first_position_of_adapters_are_part_of_the_key() {
        let key = |adapters: Adapters<'_>| PrefixKey::EMPTY.extend(&[1], adapters.iter().copied());
        let ab = key(&[(0, "a", 0.5), (0, "b", 0.5)]);
        assert_ne!(ab, key(&[(0, "b", 0.5), (0, "a", 0.5)]));
        assert_ne!(key(&[(0, "ab", 1.0)]), key(&[(0, "a", 1.0), (0, "b", 1.0)]));
        assert_ne!(key(&[(0, "a", 0.0)]), key(BASE));
        assert_ne!(key(&[(0, "a", 1.0)]), key(&[(1, "a", 1.0)]));
    }

    #[test]
    fn the_last_token_of_a_prompt_is_always_computed() {
        let mut pool = PagePool::new(8, true);
        run(&mut pool, BASE, &tokens(2 * PAGE_TOKENS));
        assert_eq!(run(&mut pool, BASE, &tokens(2 * PAGE_TOKENS)), 1);
    }

    #[test]
    fn the_least_recently_used_prefix_is_evicted_first() {
        let mut pool = PagePool::new(3, true);
        let text = |start: u32| (start..start + PAGE_TOKENS as u32 + 1).collect::<Vec<_>>();
        run(&mut pool, BASE, &text(0)); // one page kept, one released empty
        run(&mut pool, BASE, &text(1000));
        run(&mut pool, BASE, &text(0)); // used again: now 1000 is the oldest
        run(&mut pool, BASE, &text(2000));
        assert_eq!(run(&mut pool, BASE, &text(0)), 1);
        assert_eq!(run(&mut pool, BASE, &text(1000)), 0);
    }

    #[test]
    fn a_pool_without_prefix_caching_finds_nothing() {
        let mut pool = PagePool::new(8, false);
        run(&mut pool, BASE, &tokens(100));
        assert_eq!(run(&mut pool, BASE, &tokens(100)), 0);
        assert_eq!(pool.prefix_pages(), 0);
    }

    proptest! {
        #[test]
        fn pages_are_never_lost_or_owned_twice(lengths in proptest::collection::vec((1usize..200, 0u32..3), 1..40)) {
            let mut pool = PagePool::new(20, true);
            let mut held: Vec<Vec<u32>> = Vec::new();
            for (length, text) in lengths {
                let tokens: Vec<u32> = (0..length as u32).map(|i| i * 3 + text).collect();
                let (mut pages, mut key) = pool.find_prefix(length, |key, i| page_key(key, &tokens, BASE, i));
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
                for (i, &page) in pages.iter().enumerate().take(length / PAGE_TOKENS).skip(found) {
                    key = page_key(&key, &tokens, BASE, i);
                    pool.publish(page, key);
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
