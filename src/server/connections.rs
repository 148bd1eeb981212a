//! The open connections: at most so many, of which those without a request give way to new ones.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use parking_lot::Mutex;
use tokio::sync::Notify;

/// The open connections of a server.
pub struct Connections {
    table: Mutex<Table>,
    max_open: usize,
}

#[derive(Default)]
struct Table {
    open: usize,
    /// Those without a request, by the order in which they became so.
    idle: BTreeMap<u64, Arc<Eviction>>,
    /// Number of the next one that becomes idle.
    next: u64,
}

/// Whether a connection has to close.
#[derive(Default)]
struct Eviction {
    is_evicted: AtomicBool,
    notify: Notify,
}

/// An open connection. Dropping it makes room for another one.
pub struct Connection {
    connections: Arc<Connections>,
    eviction: Arc<Eviction>,
    /// Its number among those that are idle; `None` while it has a request.
    idle_number: Mutex<Option<u64>>,
}

/// A request of a connection, until its response was sent.
pub struct Busy(Arc<Connection>);

impl Connections {
    /// None yet, and never more than `max_open`.
    pub fn new(max_open: usize) -> Arc<Self> {
        Arc::new(Self { table: Mutex::default(), max_open: max_open.max(1) })
    }

    /// Adds a connection. Where there are too many, the one that has been idle longest is told to close; `None` if all are
    /// busy.
    pub fn open(self: &Arc<Self>) -> Option<Arc<Connection>> {
        let mut table = self.table.lock();
        if table.open >= self.max_open {
            let (_, longest_idle) = table.idle.pop_first()?;
            // Its place is the new one's from now on.
            longest_idle.is_evicted.store(true, Ordering::Relaxed);
            longest_idle.notify.notify_one();
        } else {
            table.open += 1;
        }
        let eviction = Arc::default();
        let idle_number = Mutex::new(Some(table.add_idle(&eviction)));
        Some(Arc::new(Connection { connections: Arc::clone(self), eviction, idle_number }))
    }
}

impl Table {
    fn add_idle(&mut self, connection: &Arc<Eviction>) -> u64 {
        let number = self.next;
        self.next += 1;
        self.idle.insert(number, Arc::clone(connection));
        number
    }
}

impl Connection {
    /// Notes that it has a request.
    pub fn busy(self: &Arc<Self>) -> Busy {
        if let Some(number) = self.idle_number.lock().take() {
            self.connections.table.lock().idle.remove(&number);
        }
        Busy(Arc::clone(self))
    }

    /// Waits until it has to close in favor of another one.
    pub async fn must_close(&self) {
        self.eviction.notify.notified().await;
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        let connection = &self.0;
        if !connection.eviction.is_evicted.load(Ordering::Relaxed) {
            let number = connection.connections.table.lock().add_idle(&connection.eviction);
            *connection.idle_number.lock() = Some(number);
        }
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        let mut table = self.connections.table.lock();
        if let Some(number) = self.idle_number.lock().take() {
            table.idle.remove(&number);
        }
        let has_place = !self.eviction.is_evicted.load(Ordering::Relaxed);
        table.open -= usize::from(has_place);
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;

    use super::*;

    fn is_told_to_close(connection: &Connection) -> bool {
        connection.must_close().now_or_never().is_some()
    }

    #[test]
    fn the_longest_idle_connection_gives_way_and_a_busy_one_never() {
        let connections = Connections::new(2);
        let (first, second) = (connections.open().expect("room"), connections.open().expect("room"));
        let busy = first.busy();
        let third = connections.open().expect("the second is idle");
        assert!(is_told_to_close(&second) && !is_told_to_close(&first));
        drop(second);
        let _busy_too = third.busy();
        assert!(connections.open().is_none(), "both are busy");
        drop(busy);
        assert!(connections.open().is_some());
        assert!(is_told_to_close(&first) && !is_told_to_close(&third));
    }

    #[test]
    fn a_connection_that_ends_makes_room() {
        let connections = Connections::new(1);
        for _ in 0..3 {
            let connection = connections.open().expect("room");
            let busy = connection.busy();
            assert!(connections.open().is_none());
            drop((busy, connection));
        }
        assert_eq!(connections.table.lock().open, 0);
    }
}
