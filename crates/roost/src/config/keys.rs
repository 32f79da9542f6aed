//! Every setting of a node, once: its key in `roost.toml`, its default, its documentation. Flags, environment variables
//! and the commented default file are made from this table.

/// What a setting's value looks like.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// A text, path, duration, size or word: a TOML string.
    Text,
    /// A whole number.
    Integer,
    /// A whole number or the word `auto`.
    IntegerOrAuto,
    /// `true`, `false` or the word `auto`.
    BooleanOrAuto,
    /// Any number of texts; its flag can be repeated.
    List,
}

/// The one setting whose flag belongs to every command: it says which node is meant.
pub(crate) const RUN: &str = "run";

/// One setting.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Key {
    /// Its path in the file: `listen`, or `defaults.memory` in the table `[defaults]`.
    pub(crate) path: &'static str,
    /// What its value looks like.
    pub(crate) kind: Kind,
    /// Its default, as TOML; `None` when the default depends on who starts the node (the text then says how).
    pub(crate) default: Option<&'static str>,
    /// What it is for, in one or two sentences.
    pub(crate) doc: &'static str,
}

const fn key(path: &'static str, kind: Kind, default: &'static str, doc: &'static str) -> Key {
    Key { path, kind, default: Some(default), doc }
}

const fn unset(path: &'static str, kind: Kind, doc: &'static str) -> Key {
    Key { path, kind, default: None, doc }
}

impl Key {
    /// The table and the name in it.
    pub(crate) fn split(&self) -> (Option<&'static str>, &'static str) {
        match self.path.split_once('.') {
            Some((table, name)) => (Some(table), name),
            None => (None, self.path),
        }
    }

    /// The flag's name, without the two hyphens: `defaults.idle_stop` is `--defaults-idle-stop`.
    pub(crate) fn flag(&self) -> String {
        self.path.replace(['.', '_'], "-")
    }

    /// The environment variable: `defaults.idle_stop` is `ROOST_DEFAULTS_IDLE_STOP`.
    pub(crate) fn variable(&self) -> String {
        format!("ROOST_{}", self.path.replace('.', "_").to_uppercase())
    }
}

/// All settings, in the order of the file: first those without a table, then table by table.
pub(crate) const KEYS: &[Key] = &[
    unset(
        "data",
        Kind::Text,
        "Directory of everything that lasts: catalog, templates, volumes. \
         Default: /var/lib/roost as root, else $XDG_DATA_HOME/roost or ~/.local/share/roost.",
    ),
    unset(
        RUN,
        Kind::Text,
        "Directory of sockets and of everything else that ends with the machine's run. \
         Default: /run/roost as root, else $XDG_RUNTIME_DIR/roost or a directory of the user in /tmp.",
    ),
    unset(
        "listen",
        Kind::List,
        "Addresses where Postgres clients connect. Default: 127.0.0.1:7432, and [::1]:7432 where there is IPv6.",
    ),
    key(
        "http",
        Kind::Text,
        r#""127.0.0.1:7480""#,
        "Address of /health, /ready and /metrics; \"off\" for none.",
    ),
    unset(
        "host",
        Kind::Text,
        "Host name in the connection URLs that Roost prints, and in the certificate that it makes. \
         Default: localhost when listening on loopback of both families or on all addresses, else the first of `listen`.",
    ),
    key(
        "node_user",
        Kind::Text,
        r#""auto""#,
        "User (a name or a uid) that the node runs as when the warden is root; auto is the user `roost` if there is \
         one, else a fixed uid that nothing else uses.",
    ),
    key(
        "purge_after",
        Kind::Text,
        r#""7d""#,
        "How long a deleted database can be undeleted. It is counted while the node runs; each time that it does not \
         counts a day at most, so that a clock that jumps deletes nothing.",
    ),
    key(
        "gateway.workers",
        Kind::IntegerOrAuto,
        r#""auto""#,
        "Threads that serve clients; auto is half the cores.",
    ),
    key(
        "gateway.require_tls",
        Kind::BooleanOrAuto,
        r#""auto""#,
        "Whether clients must use TLS; auto is yes on every address that is not loopback.",
    ),
    key(
        "gateway.startup_deadline",
        Kind::Text,
        r#""10s""#,
        "How long a client may take for startup, TLS and authentication together.",
    ),
    key(
        "gateway.connect_deadline",
        Kind::Text,
        r#""30s""#,
        "How long an authenticated client waits for its database to wake before it gets an error.",
    ),
    unset(
        "tls.certificate",
        Kind::Text,
        "Certificate chain (PEM). It is read again when it changes. Default: self-signed, made on the first start.",
    ),
    unset(
        "tls.key",
        Kind::Text,
        "Private key (PEM) of `tls.certificate`. Default: that of the self-signed one.",
    ),
    key(
        "postgres.installations",
        Kind::List,
        "[]",
        "Further directories to look for Postgres in; each has bin/postgres, or is that bin directory. \
         Debian's packages, pg_config and PATH are found without.",
    ),
    key(
        "postgres.default_major",
        Kind::IntegerOrAuto,
        r#""auto""#,
        "Major version of a new database; auto is the newest of this machine.",
    ),
    key(
        "postgres.extensions",
        Kind::List,
        "[]",
        "Extensions that owners may install although Postgres does not trust them, each with those that it requires. \
         SECURITY.md says what some of them give away. \
         A change reaches a database at its next start.",
    ),
    key(
        "postgres.preload",
        Kind::List,
        "[]",
        "Libraries that every database loads when it starts (Postgres' shared_preload_libraries), where they are \
         installed: pg_stat_statements, for instance, needs it.",
    ),
    key(
        "defaults.idle_freeze",
        Kind::Text,
        r#""10s""#,
        "Idle time before a database freezes; \"never\" is allowed.",
    ),
    key(
        "defaults.idle_stop",
        Kind::Text,
        r#""5m""#,
        "Idle time before a database stops; \"never\" is allowed.",
    ),
    key(
        "defaults.memory",
        Kind::Text,
        r#""256MiB""#,
        "Memory limit of a database, all its processes together.",
    ),
    key("defaults.storage", Kind::Text, r#""10GiB""#, "Storage limit of a database."),
    key(
        "defaults.cpu",
        Kind::Text,
        r#""unlimited""#,
        "Processor limit of a database in cores, such as \"0.5\".",
    ),
    key("defaults.max_connections", Kind::Integer, "100", "Postgres' max_connections of a database."),
    key(
        "limits.memory_budget",
        Kind::Text,
        r#""auto""#,
        "Memory that all running databases may use together; auto is three quarters of the machine's.",
    ),
    key(
        "limits.concurrent_starts",
        Kind::IntegerOrAuto,
        r#""auto""#,
        "Databases that start at the same moment; auto is two a core.",
    ),
    key(
        "limits.start_deadline",
        Kind::Text,
        r#""10m""#,
        "How long Postgres may take to start, recovery after a crash included.",
    ),
    key(
        "limits.stop_deadline",
        Kind::Text,
        r#""2m""#,
        "How long a clean stop of a database may take before it is forced.",
    ),
    key(
        "limits.maintenance_budget",
        Kind::Text,
        r#""5s""#,
        "What vacuum and analyze before a step down may cost at most.",
    ),
    key(
        "limits.storage_reserve",
        Kind::Text,
        r#""2GiB""#,
        "Free space that is kept on the data's file system (at least 5 % of it): below it, growing databases become \
         read-only.",
    ),
    key(
        "limits.xid_age",
        Kind::Integer,
        "1500000000",
        "Age of a database's oldest transaction id, in transactions, at which Roost wakes it by itself to have it \
         vacuumed: 400 million (twice what Postgres lets them grow to by itself) to 2000 million (shortly after which \
         Postgres takes no more writes).",
    ),
    key("limits.max_sessions", Kind::Integer, "10000", "Client connections at the same moment."),
    key(
        "limits.unauthenticated_per_address",
        Kind::Integer,
        "1000",
        "Connections from one address that have not authenticated yet.",
    ),
    key(
        "limits.failed_logins_per_address",
        Kind::Text,
        r#""60/1s""#,
        "Failed logins from one address before it is refused for a while: so many at once, and one more each time.",
    ),
    key(
        "limits.failed_logins_per_address_and_database",
        Kind::Text,
        r#""10/5s""#,
        "Failed logins from one address to one database: so many at once, and one more each time.",
    ),
    key(
        "limits.failed_logins_per_database",
        Kind::Text,
        r#""100/1s""#,
        "Failed logins to one database from anywhere, before logins from addresses that have not logged in before are \
         slowed down.",
    ),
    key("limits.failed_login_delay", Kind::Text, r#""1s""#, "How much such logins are slowed down."),
    key(
        "limits.cancels_per_address",
        Kind::Text,
        r#""200/20ms""#,
        "Cancel requests from one address: so many at once, and one more each time.",
    ),
    key(
        "shutdown.drain",
        Kind::Text,
        r#""5s""#,
        "When the node is told to end: how long sessions may finish what they are doing.",
    ),
    key(
        "shutdown.deadline",
        Kind::Text,
        r#""90s""#,
        "When the node is told to end: how long stopping all databases may take.",
    ),
    key(
        "log.level",
        Kind::Text,
        r#""info""#,
        "What is logged to standard error: error, warn, info, debug, trace, or a filter such as \
         \"info,roost_gateway=debug\".",
    ),
    key("log.format", Kind::Text, r#""text""#, "How it is logged: \"text\" or \"json\"."),
];
