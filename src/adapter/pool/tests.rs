//! A pool used from one thread and from many.

use std::collections::HashSet;

use super::*;
use crate::adapter::constraints::AdapterConstraints;

fn pool(max_bytes: usize, max_adapters: usize) -> AdapterPool {
    AdapterPool::new(AdapterLimits { max_bytes, max_adapters })
}

fn summary(hash: &str) -> AdapterSummary {
    AdapterSummary {
        path: "adapters/sql".into(),
        content_hash: hash.to_owned(),
        rank: 8,
        alpha: 16.0,
        use_rslora: false,
        target_modules: Vec::new(),
        sites: 1,
        max_rank: 8,
        bytes: 10,
        ignored_tensors: 0,
        constraints: AdapterConstraints::default(),
    }
}

fn load(pool: &AdapterPool, name: &str, hash: &str) -> AdapterInfo {
    let mut reservation = pool.reserve(10).expect("room");
    reservation.mark_installed();
    reservation.resize(12).expect("room");
    pool.publish(name, reservation, summary(hash)).expect("a valid name")
}

fn reaped(pool: &AdapterPool) -> Vec<SlotId> {
    let mut slots = Vec::new();
    pool.reap(|slot| slots.push(slot));
    slots
}

#[test]
fn a_lease_keeps_its_version_through_replacement_and_unloading() {
    let pool = pool(100, 4);
    let first = load(&pool, "sql", "one");
    let lease = pool.lease("sql").expect("loaded");
    let second = load(&pool, "sql", "two");
    assert!(second.generation > first.generation);
    assert_eq!(pool.lease("sql").expect("loaded").content_hash(), "two");
    pool.unload("sql").expect("loaded");
    assert_eq!(lease.content_hash(), "one");
    assert_eq!(lease.info().generation, first.generation);

    let second_slot = reaped(&pool);
    assert_eq!(second_slot.len(), 1);
    assert_ne!(second_slot[0], lease.slot());
    let slot = lease.slot();
    drop(lease);
    assert_eq!(reaped(&pool), [slot]);
    assert_eq!((pool.resident(), pool.resident_bytes(), pool.leases()), (0, 0, 0));
}

#[test]
fn a_slot_is_reused_only_after_the_backend_has_dropped_it() {
    let pool = pool(100, 1);
    load(&pool, "sql", "one");
    pool.unload("sql").expect("loaded");
    assert_eq!(pool.reserve(1).expect_err("still held").code(), ErrorCode::AdapterBudgetExceeded);
    pool.reap(|_| assert!(pool.reserve(1).is_err()));
    assert!(pool.reserve(1).is_ok());
}

#[test]
fn an_unpublished_reservation_returns_slot_and_budget() {
    let pool = pool(10, 1);
    drop(pool.reserve(10).expect("room"));
    assert_eq!(pool.resident_bytes(), 0);
    assert_eq!(reaped(&pool), []);

    let mut installed = pool.reserve(10).expect("room");
    installed.resize(7).expect("smaller");
    installed.mark_installed();
    let slot = installed.slot();
    let error = pool.publish(" ", installed, summary("one")).expect_err("blank");
    assert_eq!(error.code(), ErrorCode::AdapterNameInvalid);
    assert_eq!(reaped(&pool), [slot]);
    assert_eq!((pool.resident(), pool.resident_bytes()), (0, 0));
}

#[test]
fn bytes_and_slots_are_budgets() {
    let pool = pool(20, 2);
    load(&pool, "a", "one");
    let error = pool.reserve(9).expect_err("12 of 20 are taken");
    assert_eq!(error.code(), ErrorCode::AdapterBudgetExceeded);
    assert_eq!(error.expected(), Some("at most 8 of 20 bytes"));
    let second = pool.reserve(8).expect("fits");
    assert_eq!(pool.reserve(0).expect_err("no slot").code(), ErrorCode::AdapterBudgetExceeded);
    let mut second = second;
    let error = second.resize(9).expect_err("12 of 20 are taken");
    assert_eq!((error.code(), error.found()), (ErrorCode::AdapterBudgetExceeded, Some("1 bytes")));
    assert_eq!(pool.resident_bytes(), 20);
}

#[test]
fn an_anonymous_adapter_lives_as_long_as_its_leases() {
    let pool = pool(100, 1);
    let lease = pool.insert_anonymous(pool.reserve(5).expect("room"), summary("one"));
    assert_eq!((lease.info().name.as_str(), lease.info().leases), ("", 1));
    let (clone, other) = (lease.clone(), lease.another());
    assert_eq!((pool.leases(), lease.info().leases), (2, 2), "a clone is no lease of its own");
    drop(lease);
    assert_eq!(pool.leases(), 2, "its clone is left");
    drop(clone);
    assert_eq!((pool.leases(), reaped(&pool)), (1, vec![]));
    assert!(pool.list().is_empty());
    let slot = other.slot();
    drop(other);
    assert_eq!(reaped(&pool), [slot]);
}

#[test]
fn an_unknown_name_is_reported_with_the_loaded_names() {
    let pool = pool(100, 4);
    assert_eq!(pool.lease("sql").expect_err("empty").found(), Some("no adapters"));
    load(&pool, "wit", "one");
    load(&pool, "fr", "two");
    let error = pool.unload("sql").expect_err("not loaded");
    assert_eq!(error.code(), ErrorCode::AdapterNotFound);
    assert_eq!(error.found(), Some("'fr', 'wit'"));
    assert_eq!(pool.list().iter().map(AsRef::<str>::as_ref).collect::<Vec<_>>(), ["fr", "wit"]);
}

#[test]
fn names_must_be_visible() {
    for name in ["", "  ", "a\nb", "a\u{202e}b", "a\u{200b}b", &"x".repeat(257)] {
        assert_eq!(AdapterPool::check_name(name).expect_err(name).code(), ErrorCode::AdapterNameInvalid);
    }
    for name in ["sql", "Größe 2/ü", &"é".repeat(256)] {
        assert!(AdapterPool::check_name(name).is_ok(), "{name}");
    }
}

#[test]
fn a_lease_knows_its_pool() {
    let (one, other) = (pool(100, 1), pool(100, 1));
    load(&one, "sql", "one");
    let lease = one.lease("sql").expect("loaded");
    assert!(lease.is_of(&one) && !lease.is_of(&other));
    let foreign = other.reserve(1).expect("room");
    assert_eq!(one.publish("x", foreign, summary("two")).expect_err("foreign").code(), ErrorCode::AdapterModelMismatch);
    assert_eq!(other.resident(), 0);
}

/// Four threads load, replace, unload and lease three names at random. The set of installed
/// slots models the backend: installing into a slot twice without a drop, or dropping a leased slot, fails.
#[test]
fn threads_share_a_pool_without_losing_a_slot_or_a_byte() {
    let pool = pool(1000, 12);
    let installed: Mutex<HashSet<SlotId>> = Mutex::default();
    let leased: Mutex<Vec<SlotId>> = Mutex::default();
    let reap = || {
        pool.reap(|slot| {
            assert!(!leased.lock().contains(&slot), "{slot:?} is leased");
            assert!(installed.lock().remove(&slot), "{slot:?} was not installed");
        });
    };
    std::thread::scope(|scope| {
        for seed in 1..=4u64 {
            let (pool, installed, leased, reap) = (&pool, &installed, &leased, &reap);
            scope.spawn(move || {
                let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15);
                let mut random = |n: u64| {
                    state ^= state << 13;
                    state ^= state >> 7;
                    state ^= state << 17;
                    state % n
                };
                let mut held: Vec<AdapterLease> = Vec::new();
                for _ in 0..2000 {
                    let name = ["a", "b", "c"][random(3) as usize];
                    match random(6) {
                        0 | 1 => {
                            reap();
                            let Ok(mut reservation) = pool.reserve(10) else { continue };
                            if random(8) == 0 {
                                continue;
                            }
                            assert!(installed.lock().insert(reservation.slot()), "a slot was installed twice");
                            reservation.mark_installed();
                            reservation.resize(11).expect("room");
                            if random(8) != 0 {
                                pool.publish(name, reservation, summary(name)).expect("a valid name");
                            }
                        }
                        2 => drop(pool.unload(name)),
                        3 | 4 if held.len() < 2 => {
                            if let Ok(lease) = pool.lease(name) {
                                assert_eq!(lease.content_hash(), name);
                                leased.lock().push(lease.slot());
                                held.push(lease);
                            }
                        }
                        _ => {
                            if let Some(lease) = held.pop() {
                                let mut leased = leased.lock();
                                let at = leased.iter().position(|slot| *slot == lease.slot());
                                leased.swap_remove(at.expect("it was leased"));
                                drop(leased);
                                drop(lease);
                            }
                        }
                    }
                }
                for lease in held {
                    let mut leased = leased.lock();
                    let at = leased.iter().position(|slot| *slot == lease.slot());
                    leased.swap_remove(at.expect("it was leased"));
                }
            });
        }
    });
    for name in ["a", "b", "c"] {
        drop(pool.unload(name));
    }
    assert!(leased.lock().is_empty());
    reap();
    assert_eq!((pool.resident(), pool.resident_bytes(), pool.leases()), (0, 0, 0));
    assert!(installed.lock().is_empty());
    assert!(pool.list().is_empty());
}
