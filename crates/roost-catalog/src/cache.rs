//! What logins and routes are answered from: bounded memories of what the file says, of absent rows too.
//!
//! The invariant: once a change has been acknowledged, no answer is older than it. A read that began before the
//! change was committed may finish after it, so a value is remembered only if its key was not forgotten since before
//! the read began. Reader and writer meet in a lock per shard of keys; it is held for the check and the insertion,
//! never during a read.

use std::collections::hash_map::RandomState;
use std::hash::{BuildHasher, Hash};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::id::{ConnectionId, DatabaseId};
use crate::model::{Login, Name};

/// Locks that the keys are spread over. Forgetting one key keeps reads of its shard that are under way from being
/// remembered, so more shards mean fewer reads in vain.
const SHARDS: usize = 256;

/// A bounded memory of rows by key. `None` as the value remembers that there is no such row.
pub(crate) struct Memory<K, V> {
    entries: moka::sync::Cache<K, Option<V>>,
    /// How often a key of the shard was forgotten.
    generations: Box<[Mutex<u64>]>,
    hasher: RandomState,
}

/// Taken before a row is read; says what the memory knew then.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Ticket {
    generation: u64,
}

impl<K, V> Memory<K, V>
where
    K: Hash + Eq + Send + Sync + 'static,
    V: Clone + Send + Sync + 'static,
{
    pub(crate) fn new(capacity: u64) -> Self {
        Self {
            entries: moka::sync::Cache::new(capacity),
            generations: (0..SHARDS).map(|_| Mutex::new(0)).collect(),
            hasher: RandomState::new(),
        }
    }

    /// What is remembered: `None` nothing, `Some(None)` that there is no such row.
    pub(crate) fn get(&self, key: &K) -> Option<Option<V>> {
        self.entries.get(key)
    }

    /// To be called before the row is read.
    pub(crate) fn ticket(&self, key: &K) -> Ticket {
        Ticket { generation: *self.shard(key) }
    }

    /// Remembers what was read after `ticket` was taken, unless the key was forgotten since.
    pub(crate) fn remember(&self, ticket: Ticket, key: K, value: Option<V>) {
        let generation = self.shard(&key);
        if *generation == ticket.generation {
            self.entries.insert(key, value);
        }
    }

    /// Forgets a key, after a change of its row was committed and before the change is acknowledged.
    pub(crate) fn forget(&self, key: &K) {
        let mut generation = self.shard(key);
        *generation = generation.wrapping_add(1);
        self.entries.invalidate(key);
    }

    fn shard(&self, key: &K) -> MutexGuard<'_, u64> {
        let hash = usize::try_from(self.hasher.hash_one(key) % SHARDS as u64).unwrap_or(0);
        let shard = self.generations.get(hash).expect("a remainder of SHARDS is below the number of shards");
        shard.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A project's and a database's name.
pub(crate) type RouteKey = (Name, Name);

/// The memories of an open catalog.
pub(crate) struct Memories {
    pub(crate) logins: Memory<ConnectionId, Arc<Login>>,
    pub(crate) routes: Memory<RouteKey, DatabaseId>,
}

/// What a change makes untrue: forgotten after the commit, before the change is acknowledged.
#[derive(Debug, Default)]
pub(crate) struct Stale {
    pub(crate) logins: Vec<ConnectionId>,
    pub(crate) routes: Vec<RouteKey>,
}

impl Memories {
    pub(crate) fn forget(&self, stale: &Stale) {
        for id in &stale.logins {
            self.logins.forget(id);
        }
        for names in &stale.routes {
            self.routes.forget(names);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_read_is_remembered_and_so_is_that_there_was_nothing() {
        let memory = Memory::<u32, &str>::new(10);
        assert_eq!(memory.get(&1), None);
        memory.remember(memory.ticket(&1), 1, Some("one"));
        memory.remember(memory.ticket(&2), 2, None);
        assert_eq!(memory.get(&1), Some(Some("one")));
        assert_eq!(memory.get(&2), Some(None));
    }

    #[test]
    fn a_read_that_began_before_a_change_leaves_nothing_behind_after_it() {
        let memory = Memory::<u32, &str>::new(10);
        let slow_read = memory.ticket(&1);
        memory.forget(&1);
        memory.remember(slow_read, 1, Some("old"));
        assert_eq!(memory.get(&1), None);
        memory.remember(memory.ticket(&1), 1, Some("new"));
        assert_eq!(memory.get(&1), Some(Some("new")));
    }

    #[test]
    fn a_value_that_came_in_just_before_the_change_is_forgotten_by_it() {
        let memory = Memory::<u32, &str>::new(10);
        let read = memory.ticket(&1);
        memory.remember(read, 1, Some("old"));
        memory.forget(&1);
        assert_eq!(memory.get(&1), None);
    }

    #[test]
    fn a_memory_holds_no_more_than_its_capacity() {
        let memory = Memory::<u32, u32>::new(100);
        for key in 0..10_000 {
            memory.remember(memory.ticket(&key), key, Some(key));
        }
        memory.entries.run_pending_tasks();
        assert!(memory.entries.entry_count() <= 100, "{}", memory.entries.entry_count());
    }
}
