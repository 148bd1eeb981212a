//! Which pages of a KV cache are in use, and which hold a prefix that can be reused (paged KV cache, prefix caching).
//!
//! Bookkeeping only: keys and values live in the backend. A page holds [`PAGE_TOKENS`] positions of every layer of a KV group.
//! A full page can be published under a [`PrefixKey`], a hash of *everything that determined its contents*: what each page up
//! to it was computed from ([`PageComputation`]). So a prefix is reused exactly when it is the same computation: never across
//! adapters or layer maps, and shared with the base until an aLoRA adapter is invoked. A page that no sequence uses keeps its
//! contents until the space is needed; the least recently used goes first.

use std::collections::{BTreeMap, HashMap};
use std::hash::{Hash, Hasher};

use sha2::{Digest, Sha256};

use crate::adapter::forward_plan::PageComputation;
use crate::error::{Error, ErrorCode, Result};

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

    /// This prefix extended by a page.
    pub fn extend(&self, page: &PageComputation<'_>) -> Self {
        let mut hasher = Sha256Hasher(Sha256::new());
        hasher.write(&self.0);
        page.hash(&mut hasher);
        Self(hasher.0.finalize().into())
    }
}

/// Feeds what a derived `Hash` writes to a SHA-256.
struct Sha256Hasher(Sha256);

impl Hasher for Sha256Hasher {
    fn write(&mut self, bytes: &[u8]) {
        self.0.update(bytes);
    }

    fn finish(&self) -> u64 {
        let digest: [u8; 32] = self.0.clone().finalize().into();
        digest.iter().take(8).fold(0, |word, &byte| word << 8 | u64::from(byte))
    }
}

/// A page of one KV group.
type PageKey = (PrefixKey, usize);

#[derive(Clone, Debug, Default)]
struct Page {
    users: u32,
    key: Option<PageKey>,
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
    by_key: HashMap<PageKey, u32>,
    clock: u64,
    keeps_prefixes: bool,
}

impl PagePool {
    /// A pool of `count` empty pages.
    ///
    /// # Errors
    /// `memory_exhausted`.
    pub fn new(count: usize, keeps_prefixes: bool) -> Result<Self> {
        let too_many = || Error::new(ErrorCode::MemoryExhausted, format!("cannot keep track of {count} KV pages"));
        let (mut pages, mut empty) = (Vec::new(), Vec::new());
        pages.try_reserve_exact(count).map_err(|_| too_many())?;
        empty.try_reserve_exact(count).map_err(|_| too_many())?;
        pages.resize(count, Page::default());
        empty.extend((0..u32::try_from(count).map_err(|_| too_many())?).rev());
        Ok(Self { pages, empty, idle: BTreeMap::new(), by_key: HashMap::new(), clock: 0, keeps_prefixes })
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

    /// The pages that already hold the longest prefix of a sequence of `tokens` tokens, those of all KV groups interleaved,
    /// each with one more user; and the key of that prefix. `extend` returns the key of the prefix that ends with the page of a
    /// given index from the key before it.
    ///
    /// At least one token is left to compute, since its logits are needed.
    pub fn find_prefix(
        &mut self,
        tokens: usize,
        kv_groups: usize,
        extend: impl Fn(&PrefixKey, usize) -> PrefixKey,
    ) -> (Vec<u32>, PrefixKey) {
        let (mut key, mut found) = (PrefixKey::EMPTY, Vec::new());
        for index in 0..tokens.saturating_sub(1) / PAGE_TOKENS {
            let next = extend(&key, index);
            let before = found.len();
            found.extend((0..kv_groups).map_while(|group| self.by_key.get(&(next, group))));
            if found.len() < before + kv_groups {
                found.truncate(before);
                break;
            }
            found[before..].iter().for_each(|&page| self.add_user(page));
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

    /// Makes a full, computed page of a KV group available as the last one of the prefix `key`. One already published as that
    /// stays.
    pub fn publish(&mut self, page: u32, key: PrefixKey, kv_group: usize) {
        let key = (key, kv_group);
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

    /// Forgets all prefixes and all users.
    pub fn reset(&mut self) {
        self.pages.fill(Page::default());
        self.empty.clear();
        self.empty.extend((0..self.pages.len() as u32).rev());
        self.idle.clear();
        self.by_key.clear();
        self.clock = 0;
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
    use crate::adapter::constraints::AdapterConstraints;
    use crate::adapter::forward_plan::ForwardPlan;
    use crate::adapter::mixture::Mixture;
    use crate::adapter::mixture::tests::{invoked_by, lease, pool, replacing, sites};
    use crate::sites::SitePart;

    /// A token that no text below contains otherwise.
    const INVOKE: u32 = 1_000_000;

    fn tokens(n: usize) -> Vec<u32> {
        (0..n as u32).collect()
    }

    /// Adapters of a sequence: content hash and weight. One whose hash begins with `i` acts from the last `INVOKE` on.
    type Adapters<'a> = &'a [(&'a str, f32)];

    fn forward_plan(adapters: Adapters<'_>, tokens: &[u32]) -> ForwardPlan {
        let pool = pool();
        let part = |&(hash, weight): &(&str, f32)| {
            let constraints = if hash.starts_with('i') { invoked_by(&[INVOKE]) } else { AdapterConstraints::default() };
            (lease(&pool, hash, constraints), weight)
        };
        Mixture::new(adapters.iter().map(part).collect(), &sites()).expect("valid").forward_plan(tokens)
    }

    fn page_key(key: &PrefixKey, plan: &ForwardPlan, tokens: &[u32], index: usize) -> PrefixKey {
        let first = index * PAGE_TOKENS;
        key.extend(&plan.page(&tokens[first..first + PAGE_TOKENS], first))
    }

    /// Computes `tokens` as an engine would and releases all pages; the number of pages found.
    fn run_in_groups(pool: &mut PagePool, kv_groups: usize, adapters: Adapters<'_>, tokens: &[u32]) -> usize {
        let plan = forward_plan(adapters, tokens);
        let (mut pages, mut key) = pool.find_prefix(tokens.len(), kv_groups, |key, i| page_key(key, &plan, tokens, i));
        let found = pages.len();
        while pages.len() < pages_for(tokens.len()) * kv_groups {
            pages.push(pool.allocate().expect("a free page"));
        }
        for index in found / kv_groups..tokens.len() / PAGE_TOKENS {
            key = page_key(&key, &plan, tokens, index);
            for group in 0..kv_groups {
                pool.publish(pages[index * kv_groups + group], key, group);
            }
        }
        pool.release(pages);
        found
    }

    fn run(pool: &mut PagePool, adapters: Adapters<'_>, tokens: &[u32]) -> usize {
        run_in_groups(pool, 1, adapters, tokens)
    }

    #[test]
    fn a_prefix_is_reused_only_by_the_same_mixture() {
        let mut pool = PagePool::new(32, true).expect("few pages");
        let text = tokens(3 * PAGE_TOKENS + 5);
        assert_eq!(run(&mut pool, &[], &text), 0);
        assert_eq!(run(&mut pool, &[], &text), 3);
        assert_eq!(run(&mut pool, &[("sql", 1.0)], &text), 0);
        assert_eq!(run(&mut pool, &[("sql", 0.5)], &text), 0);
        assert_eq!(run(&mut pool, &[("sql", 0.5), ("wit", 0.5)], &text), 0);
        assert_eq!(run(&mut pool, &[("wit", 0.5), ("sql", 0.5)], &text), 0);
        assert_eq!(run(&mut pool, &[("sql", 0.5), ("wit", 0.5)], &text), 3);
        assert_eq!(run(&mut pool, &[], &text[..PAGE_TOKENS + 1]), 1);
    }

    #[test]
    fn a_prefix_is_reused_only_by_what_is_rotated_alike() {
        let text = tokens(PAGE_TOKENS);
        let short = forward_plan(&[], &text);
        let long = ForwardPlan { has_long_rope: true, ..short.clone() };
        let key = |plan| page_key(&PrefixKey::EMPTY, plan, &text, 0);
        assert!(key(&short) != key(&long));
    }

    #[test]
    fn until_an_adapter_is_invoked_its_prefix_is_shared_with_the_base() {
        let mut pool = PagePool::new(64, true).expect("few pages");
        let invoked_at = |position: usize| {
            let mut text = tokens(4 * PAGE_TOKENS + 5);
            text[position] = INVOKE;
            text
        };
        let text = invoked_at(2 * PAGE_TOKENS + 3);
        assert_eq!(run(&mut pool, &[("i", 1.0)], &text), 0);
        assert_eq!(run(&mut pool, &[], &text), 2);
        assert_eq!(run(&mut pool, &[("i", 1.0)], &text), 4);
        assert_eq!(run(&mut pool, &[("i", 1.0)], &invoked_at(2 * PAGE_TOKENS + 4)), 2);
        assert_eq!(run(&mut pool, &[("other", 1.0)], &text), 0);
    }

    #[test]
    fn pages_of_several_kv_groups_are_found_together_or_not_at_all() {
        let mut pool = PagePool::new(6, true).expect("few pages");
        let text = tokens(2 * PAGE_TOKENS + 1);
        assert_eq!(run_in_groups(&mut pool, 2, &[], &text), 0);
        assert_eq!(run_in_groups(&mut pool, 2, &[], &text), 4);
        // The second page loses one of its groups.
        let pages: Vec<u32> = (0..3).map(|_| pool.allocate().expect("a free page")).collect();
        pool.release(pages);
        assert_eq!(run_in_groups(&mut pool, 2, &[], &text) % 2, 0);
        assert_eq!(pool.free(), pool.total());
    }

    #[test]
    fn the_last_token_of_a_prompt_is_always_computed() {
        let mut pool = PagePool::new(8, true).expect("few pages");
        run(&mut pool, &[], &tokens(2 * PAGE_TOKENS));
        assert_eq!(run(&mut pool, &[], &tokens(2 * PAGE_TOKENS)), 1);
    }

    #[test]
    fn the_least_recently_used_prefix_is_evicted_first() {
        let mut pool = PagePool::new(3, true).expect("few pages");
        let text = |start: u32| (start..start + PAGE_TOKENS as u32 + 1).collect::<Vec<_>>();
        run(&mut pool, &[], &text(0)); // one page kept, one released empty
        run(&mut pool, &[], &text(1000));
        run(&mut pool, &[], &text(0)); // used again: now 1000 is the oldest
        run(&mut pool, &[], &text(2000));
        assert_eq!(run(&mut pool, &[], &text(0)), 1);
        assert_eq!(run(&mut pool, &[], &text(1000)), 0);
    }

    #[test]
    fn a_pool_without_prefix_caching_finds_nothing() {
        let mut pool = PagePool::new(8, false).expect("few pages");
        run(&mut pool, &[], &tokens(100));
        assert_eq!(run(&mut pool, &[], &tokens(100)), 0);
        assert_eq!(pool.prefix_pages(), 0);
    }

    /// The adapters that random sequences choose from: plain, invoked by one token or two, with layer maps, replacing.
    fn constraints(adapter: usize) -> AdapterConstraints {
        let layers = |layers: &[u32], invocation: &[u32]| AdapterConstraints {
            layers: Some(layers.into()),
            ..invoked_by(invocation)
        };
        match adapter {
            0 | 1 => AdapterConstraints::default(),
            2 => invoked_by(&[1]),
            3 => invoked_by(&[2, 1]),
            4 => layers(&[0], &[1]),
            5 => layers(&[0], &[]),
            6 => layers(&[1, 0], &[1]),
            7 => layers(&[0, 1, 1], &[2]),
            _ => AdapterConstraints { invocation: vec![1], ..replacing(SitePart::Bias) },
        }
    }

    /// A random sequence: its tokens, and the index and weight of its adapters.
    type Sequence = (Vec<u32>, Vec<(usize, f32)>);

    /// What a position is computed from: its token, the layers, and what acts on it: adapters (by index) with the bits of their
    /// weights.
    type Position = (u32, Option<Vec<u32>>, Vec<(usize, u32)>);

    /// What each position is computed from, by definition; `None` if the adapters do not mix.
    fn positions((tokens, mixture): &Sequence) -> Option<Vec<Position>> {
        let pool = pool();
        let part = |&(adapter, weight): &(usize, f32)| (lease(&pool, "x", constraints(adapter)), weight);
        Mixture::new(mixture.iter().map(part).collect(), &sites()).ok()?;
        let layers =
            mixture.first().and_then(|&(adapter, _)| constraints(adapter).layers.map(|layers| layers.to_vec()));
        let acting = |position: usize| {
            let acts = |&(adapter, weight): &(usize, f32)| {
                let constraints = constraints(adapter);
                let invocation = &constraints.invocation;
                let last = (0..tokens.len()).filter(|&at| tokens[at..].starts_with(invocation)).max();
                match last.is_some_and(|last| last <= position) || invocation.is_empty() {
                    true => Some((adapter, weight.to_bits())),
                    false => constraints.is_replacing().then_some((adapter, 0)),
                }
            };
            mixture.iter().filter_map(acts).collect()
        };
        Some((0..tokens.len()).map(|position| (tokens[position], layers.clone(), acting(position))).collect())
    }

    fn keys((tokens, mixture): &Sequence) -> Vec<PrefixKey> {
        let pool = pool();
        let part = |&(adapter, weight): &(usize, f32)| {
            (lease(&pool, &format!("hash {adapter}"), constraints(adapter)), weight)
        };
        let plan = Mixture::new(mixture.iter().map(part).collect(), &sites()).expect("valid").forward_plan(tokens);
        let next = |key: &mut PrefixKey, page| {
            *key = page_key(key, &plan, tokens, page);
            Some(*key)
        };
        (0..tokens.len() / PAGE_TOKENS).scan(PrefixKey::EMPTY, next).collect()
    }

    fn sequence() -> impl Strategy<Value = Sequence> {
        // Invocations are rare, so that they appear anywhere, or nowhere.
        let token = prop_oneof![60 => Just(0u32), 1 => Just(1), 1 => Just(2)];
        let weight = prop::sample::select(vec![1.0f32, 0.5, -0.0, 0.0]);
        (prop::collection::vec(token, PAGE_TOKENS..4 * PAGE_TOKENS), prop::collection::vec((0usize..9, weight), 0..3))
    }

    proptest! {
        #![proptest_config(ProptestConfig { max_global_rejects: 100_000, ..ProptestConfig::default() })]

        #[test]
        fn keys_are_equal_exactly_if_the_computations_are(
            one in sequence(),
            other in sequence(),
            shared in 0usize..4 * PAGE_TOKENS,
            same_mixture in any::<bool>(),
        ) {
            // The other sequence often begins like the first and often has its adapters.
            let mut other = other;
            let shared = shared.min(one.0.len()).min(other.0.len());
            other.0[..shared].copy_from_slice(&one.0[..shared]);
            if same_mixture {
                other.1 = one.1.clone();
            }
            let (computed, computed_other) = (positions(&one), positions(&other));
            prop_assume!(computed.is_some() && computed_other.is_some());
            let (computed, computed_other) = (computed.unwrap_or_default(), computed_other.unwrap_or_default());
            for (page, (key, key_other)) in keys(&one).into_iter().zip(keys(&other)).enumerate() {
                let end = (page + 1) * PAGE_TOKENS;
                prop_assert_eq!(key == key_other, computed[..end] == computed_other[..end], "page {}", page);
            }
        }

        #[test]
        fn pages_are_never_lost_or_owned_twice(
            lengths in proptest::collection::vec((1usize..200, 0u32..3, 1usize..3), 1..40),
        ) {
            let mut pool = PagePool::new(20, true).expect("few pages");
            let mut held: Vec<Vec<u32>> = Vec::new();
            let base = forward_plan(&[], &[]);
            for (length, text, kv_groups) in lengths {
                let tokens: Vec<u32> = (0..length as u32).map(|i| i * 3 + text + 1000 * kv_groups as u32).collect();
                let extend = |key: &PrefixKey, i| page_key(key, &base, &tokens, i);
                let (mut pages, mut key) = pool.find_prefix(length, kv_groups, extend);
                let found = pages.len();
                while pages.len() < pages_for(length) * kv_groups {
                    match pool.allocate() {
                        Some(page) => {
                            prop_assert!(held.iter().flatten().chain(&pages).all(|&p| p != page));
                            pages.push(page);
                        }
                        None => break,
                    }
                }
                for index in found / kv_groups..(length / PAGE_TOKENS).min(pages.len() / kv_groups) {
                    key = page_key(&key, &base, &tokens, index);
                    for group in 0..kv_groups {
                        pool.publish(pages[index * kv_groups + group], key, group);
                    }
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
