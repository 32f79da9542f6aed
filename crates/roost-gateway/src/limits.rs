//! Bounds on what one client, or one address, may take: sessions, connections that have not authenticated, failed
//! logins and cancel requests. All of them are checked before anything expensive is done.
//!
//! Failed logins are counted three ways. Per address, and per address and database, they lead to a refusal; so an
//! attacker shuts out only their own address. Per database they only slow down logins from addresses that have not
//! logged in to it before; so nobody can shut out the owner by failing from elsewhere.
//!
//! Every table has a fixed capacity. A full one forgets the half that is closest to being forgiven.

use std::collections::HashMap;
use std::hash::{BuildHasher, Hash, RandomState};
use std::net::{IpAddr, Ipv6Addr};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use roost_catalog::id::DatabaseId;

use crate::config::LimitsConfig;
use crate::error::ErrorKind;

/// A token bucket: `burst` at once, and one more `every` so often.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rate {
    /// How many are allowed at once.
    pub burst: u32,
    /// How long until one more is allowed.
    pub every: Duration,
}

/// What an address is counted as: an IPv4 address, or an IPv6 network of 64 bits, which is what one customer of a
/// provider gets.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Address(IpAddr);

impl From<IpAddr> for Address {
    fn from(address: IpAddr) -> Self {
        Self(match address.to_canonical() {
            IpAddr::V6(v6) => {
                let [a, b, c, d, ..] = v6.segments();
                IpAddr::V6(Ipv6Addr::new(a, b, c, d, 0, 0, 0, 0))
            }
            v4 @ IpAddr::V4(_) => v4,
        })
    }
}

/// The longest that a bucket makes anybody wait, beyond the interval of one token.
const MAX_DEBT: Duration = Duration::from_secs(600);

const SHARDS: usize = 16;
/// Keys in one shard; 65,536 in a table.
const SHARD_CAPACITY: usize = 4_096;

/// A token bucket for each of many keys, as the time at which the bucket is full again.
#[derive(Debug)]
struct Buckets<K> {
    rate: Rate,
    shards: [Mutex<HashMap<K, Instant>>; SHARDS],
    hasher: RandomState,
}

impl<K: Hash + Eq + Copy> Buckets<K> {
    fn new(rate: Rate) -> Self {
        Self { rate, shards: std::array::from_fn(|_| Mutex::default()), hasher: RandomState::new() }
    }

    fn shard(&self, key: &K) -> MutexGuard<'_, HashMap<K, Instant>> {
        let index = usize::try_from(self.hasher.hash_one(key) % SHARDS as u64).unwrap_or_default();
        lock(&self.shards[index % SHARDS])
    }

    /// How long until the bucket of `key` has a token; zero if it has one.
    fn wait(&self, key: &K, now: Instant) -> Duration {
        let Some(full_at) = self.shard(key).get(key).copied() else { return Duration::ZERO };
        let owed = full_at.saturating_duration_since(now);
        // A token is there when what is owed leaves room for one more.
        (owed + self.rate.every).saturating_sub(self.rate.every * self.rate.burst.max(1))
    }

    /// Takes a token, whether there is one or not: attempts that were under way together are all counted, and owed later.
    fn take(&self, key: &K, now: Instant) {
        let mut shard = self.shard(key);
        if shard.len() >= SHARD_CAPACITY && !shard.contains_key(key) {
            make_room(&mut shard, now);
        }
        let full_at = shard.entry(*key).or_insert(now);
        let ceiling = now + self.rate.every * self.rate.burst.max(1) + MAX_DEBT;
        *full_at = ((*full_at).max(now) + self.rate.every).min(ceiling);
    }
}

/// Forgets the buckets that are full, and if that makes no room, the half that will be full first. Half of them, so that
/// the cost of looking through all is shared by as many new keys.
fn make_room<K: Hash + Eq + Copy>(shard: &mut HashMap<K, Instant>, now: Instant) {
    shard.retain(|_, full_at| *full_at > now);
    if shard.len() < SHARD_CAPACITY {
        return;
    }
    let mut times: Vec<Instant> = shard.values().copied().collect();
    let middle = times.len() / 2;
    let (_, median, _) = times.select_nth_unstable(middle);
    shard.retain(|_, full_at| *full_at > *median);
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Counters and times are valid after any panic.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// All the gateway's bounds on clients.
#[derive(Debug)]
pub(crate) struct Limits {
    config: LimitsConfig,
    sessions: AtomicUsize,
    unauthenticated: Mutex<HashMap<Address, u32>>,
    failures_by_address: Buckets<Address>,
    failures_by_pair: Buckets<(Address, DatabaseId)>,
    failures_by_database: Buckets<DatabaseId>,
    /// Who has logged in where; a bucket that is not full yet means "not long ago".
    acquainted: Buckets<(Address, DatabaseId)>,
    cancels: Buckets<Address>,
}

/// How long a successful login exempts its address from the delay that failures to the same database cause.
const ACQUAINTANCE: Duration = Duration::from_secs(24 * 60 * 60);

impl Limits {
    pub(crate) fn new(config: LimitsConfig) -> Arc<Self> {
        Arc::new(Self {
            config,
            sessions: AtomicUsize::new(0),
            unauthenticated: Mutex::default(),
            failures_by_address: Buckets::new(config.failed_logins_per_address),
            failures_by_pair: Buckets::new(config.failed_logins_per_address_and_database),
            failures_by_database: Buckets::new(config.failed_logins_per_database),
            acquainted: Buckets::new(Rate { burst: 1, every: ACQUAINTANCE }),
            cancels: Buckets::new(config.cancels_per_address),
        })
    }

    /// Counts a connection.
    pub(crate) fn admit_session(self: &Arc<Self>) -> Result<SessionPermit, ErrorKind> {
        let limit = self.config.max_sessions;
        if self.sessions.fetch_add(1, Ordering::Relaxed) >= limit {
            self.sessions.fetch_sub(1, Ordering::Relaxed);
            return Err(ErrorKind::TooManySessions { limit });
        }
        Ok(SessionPermit(self.clone()))
    }

    /// How many connections there are.
    pub(crate) fn sessions(&self) -> usize {
        self.sessions.load(Ordering::Relaxed)
    }

    /// Counts a connection that has not authenticated yet.
    pub(crate) fn admit_stranger(self: &Arc<Self>, peer: IpAddr) -> Result<StrangerPermit, ErrorKind> {
        let address = Address::from(peer);
        let limit = self.config.unauthenticated_per_address;
        let mut strangers = lock(&self.unauthenticated);
        let count = strangers.entry(address).or_insert(0);
        if *count >= limit {
            return Err(ErrorKind::TooManyUnauthenticated { limit });
        }
        *count += 1;
        drop(strangers);
        Ok(StrangerPermit { limits: self.clone(), address })
    }

    /// Refuses an address that has failed to log in too often.
    pub(crate) fn check_address(&self, peer: IpAddr) -> Result<(), ErrorKind> {
        let wait = self.failures_by_address.wait(&peer.into(), Instant::now());
        refuse_for(wait, "limits.failed_logins_per_address", self.config.failed_logins_per_address)
    }

    /// Refuses an address that has failed to log in to this database too often.
    pub(crate) fn check_database(&self, peer: IpAddr, database: DatabaseId) -> Result<(), ErrorKind> {
        let wait = self.failures_by_pair.wait(&(peer.into(), database), Instant::now());
        let rate = self.config.failed_logins_per_address_and_database;
        refuse_for(wait, "limits.failed_logins_per_address_and_database", rate)
    }

    /// How long a login to this database from this address is held back.
    pub(crate) fn delay(&self, peer: IpAddr, database: DatabaseId) -> Duration {
        let now = Instant::now();
        let pressed = !self.failures_by_database.wait(&database, now).is_zero();
        let known = !self.acquainted.wait(&(peer.into(), database), now).is_zero();
        if pressed && !known { self.config.failed_login_delay } else { Duration::ZERO }
    }

    /// Counts a failed login.
    pub(crate) fn login_failed(&self, peer: IpAddr, database: Option<DatabaseId>) {
        let now = Instant::now();
        self.failures_by_address.take(&peer.into(), now);
        if let Some(database) = database {
            self.failures_by_pair.take(&(peer.into(), database), now);
            self.failures_by_database.take(&database, now);
        }
    }

    /// Remembers a successful login.
    pub(crate) fn login_succeeded(&self, peer: IpAddr, database: DatabaseId) {
        self.acquainted.take(&(peer.into(), database), Instant::now());
    }

    /// Whether one more cancel request from this address is looked at.
    pub(crate) fn admit_cancel(&self, peer: IpAddr) -> bool {
        let (address, now) = (Address::from(peer), Instant::now());
        let admitted = self.cancels.wait(&address, now).is_zero();
        if admitted {
            self.cancels.take(&address, now);
        }
        admitted
    }
}

fn refuse_for(wait: Duration, setting: &'static str, rate: Rate) -> Result<(), ErrorKind> {
    if wait.is_zero() {
        Ok(())
    } else {
        Err(ErrorKind::TooManyFailedLogins { setting, rate, retry_in: wait })
    }
}

/// One of the connections that [`LimitsConfig::max_sessions`] counts.
#[derive(Debug)]
pub(crate) struct SessionPermit(Arc<Limits>);

impl Drop for SessionPermit {
    fn drop(&mut self) {
        self.0.sessions.fetch_sub(1, Ordering::Relaxed);
    }
}

/// One of the connections that [`LimitsConfig::unauthenticated_per_address`] counts.
#[derive(Debug)]
pub(crate) struct StrangerPermit {
    limits: Arc<Limits>,
    address: Address,
}

impl Drop for StrangerPermit {
    fn drop(&mut self) {
        let mut strangers = lock(&self.limits.unauthenticated);
        if let Some(count) = strangers.get_mut(&self.address) {
            *count -= 1;
            if *count == 0 {
                strangers.remove(&self.address);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOME: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(192, 0, 2, 1));
    const AWAY: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(203, 0, 113, 9));

    fn limits() -> Arc<Limits> {
        Limits::new(LimitsConfig {
            max_sessions: 2,
            unauthenticated_per_address: 2,
            failed_logins_per_address: Rate { burst: 5, every: Duration::from_secs(60) },
            failed_logins_per_address_and_database: Rate { burst: 3, every: Duration::from_secs(60) },
            failed_logins_per_database: Rate { burst: 4, every: Duration::from_secs(60) },
            failed_login_delay: Duration::from_secs(1),
            cancels_per_address: Rate { burst: 2, every: Duration::from_secs(60) },
        })
    }

    #[test]
    fn a_bucket_allows_its_burst_and_then_one_per_interval() {
        let buckets = Buckets::new(Rate { burst: 3, every: Duration::from_secs(10) });
        let start = Instant::now();
        for _ in 0..3 {
            assert_eq!(buckets.wait(&1, start), Duration::ZERO);
            buckets.take(&1, start);
        }
        assert_eq!(buckets.wait(&1, start), Duration::from_secs(10));
        assert_eq!(buckets.wait(&1, start + Duration::from_secs(10)), Duration::ZERO);
        assert_eq!(buckets.wait(&2, start), Duration::ZERO);
    }

    #[test]
    fn attempts_made_together_are_owed_later_up_to_a_bound() {
        let buckets = Buckets::new(Rate { burst: 3, every: Duration::from_secs(10) });
        let start = Instant::now();
        for _ in 0..13 {
            buckets.take(&1, start);
        }
        assert_eq!(buckets.wait(&1, start), Duration::from_secs(110));
        for _ in 0..1_000 {
            buckets.take(&1, start);
        }
        assert_eq!(buckets.wait(&1, start), MAX_DEBT + Duration::from_secs(10));
    }

    #[test]
    fn tables_are_bounded_and_keep_the_worst_offender() {
        let buckets = Buckets::new(Rate { burst: 10, every: Duration::from_secs(3600) });
        let now = Instant::now();
        for _ in 0..10 {
            buckets.take(&u64::MAX, now);
        }
        for key in 0..200_000_u64 {
            buckets.take(&key, now);
        }
        let kept: usize = buckets.shards.iter().map(|shard| lock(shard).len()).sum();
        assert!(kept <= SHARDS * SHARD_CAPACITY, "{kept}");
        assert!(!buckets.wait(&u64::MAX, now).is_zero());
    }

    #[test]
    fn failing_from_one_address_shuts_out_only_that_address() {
        let limits = limits();
        let database = DatabaseId::generate();
        for _ in 0..100 {
            limits.login_failed(AWAY, Some(database));
        }
        assert!(matches!(limits.check_database(AWAY, database), Err(ErrorKind::TooManyFailedLogins { .. })));
        assert!(limits.check_address(AWAY).is_err());
        assert!(limits.check_database(HOME, database).is_ok());
        assert!(limits.check_address(HOME).is_ok());
    }

    #[test]
    fn many_failures_delay_strangers_but_not_who_has_logged_in_before() {
        let limits = limits();
        let database = DatabaseId::generate();
        limits.login_succeeded(HOME, database);
        for _ in 0..10 {
            limits.login_failed(AWAY, Some(database));
        }
        assert_eq!(limits.delay(HOME, database), Duration::ZERO);
        assert_eq!(limits.delay(AWAY, database), Duration::from_secs(1));
        assert_eq!(limits.delay(AWAY, DatabaseId::generate()), Duration::ZERO);
    }

    #[test]
    fn permits_are_given_back() {
        let limits = limits();
        let first = limits.admit_stranger(HOME).unwrap();
        let _second = limits.admit_stranger(HOME).unwrap();
        assert!(limits.admit_stranger(HOME).is_err());
        assert!(limits.admit_stranger(AWAY).is_ok());
        drop(first);
        assert!(limits.admit_stranger(HOME).is_ok());

        let session = limits.admit_session().unwrap();
        let _other = limits.admit_session().unwrap();
        assert!(matches!(limits.admit_session(), Err(ErrorKind::TooManySessions { limit: 2 })));
        drop(session);
        assert!(limits.admit_session().is_ok());
    }

    #[test]
    fn cancel_requests_are_rationed() {
        let limits = limits();
        assert!(limits.admit_cancel(HOME));
        assert!(limits.admit_cancel(HOME));
        assert!(!limits.admit_cancel(HOME));
        assert!(limits.admit_cancel(AWAY));
    }

    #[test]
    fn an_ipv6_customer_is_one_address() {
        let one = Address::from("2001:db8:1:2::1".parse::<IpAddr>().unwrap());
        let same = Address::from("2001:db8:1:2:ffff::9".parse::<IpAddr>().unwrap());
        let other = Address::from("2001:db8:1:3::1".parse::<IpAddr>().unwrap());
        assert_eq!(one, same);
        assert_ne!(one, other);
        assert_eq!(Address::from("::ffff:192.0.2.1".parse::<IpAddr>().unwrap()), Address::from(HOME));
    }
}
