//! Errors and notices as the protocol carries them, and the SQLSTATEs that Roost itself uses.
//!
//! Source: PostgreSQL documentation, "Error and Notice Message Fields" and "PostgreSQL Error Codes".

use std::fmt;

/// A five-character error code.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct SqlState([u8; 5]);

macro_rules! states {
    ($($(#[$doc:meta])* $name:ident = $code:literal;)*) => {
        impl SqlState {
            $($(#[$doc])* pub const $name: Self = Self(*$code);)*
        }
    };
}

states! {
    /// connection_exception
    CONNECTION_EXCEPTION = b"08000";
    /// sqlserver_rejected_establishment_of_sqlconnection
    REJECTED_CONNECTION = b"08004";
    /// connection_failure
    CONNECTION_FAILURE = b"08006";
    /// protocol_violation
    PROTOCOL_VIOLATION = b"08P01";
    /// feature_not_supported
    FEATURE_NOT_SUPPORTED = b"0A000";
    /// read_only_sql_transaction
    READ_ONLY_TRANSACTION = b"25006";
    /// invalid_authorization_specification
    INVALID_AUTHORIZATION = b"28000";
    /// invalid_password
    INVALID_PASSWORD = b"28P01";
    /// invalid_catalog_name
    INVALID_CATALOG_NAME = b"3D000";
    /// insufficient_resources
    INSUFFICIENT_RESOURCES = b"53000";
    /// disk_full
    DISK_FULL = b"53100";
    /// out_of_memory
    OUT_OF_MEMORY = b"53200";
    /// too_many_connections
    TOO_MANY_CONNECTIONS = b"53300";
    /// configuration_limit_exceeded
    CONFIGURATION_LIMIT = b"53400";
    /// program_limit_exceeded
    PROGRAM_LIMIT = b"54000";
    /// query_canceled
    QUERY_CANCELED = b"57014";
    /// admin_shutdown
    ADMIN_SHUTDOWN = b"57P01";
    /// crash_shutdown
    CRASH_SHUTDOWN = b"57P02";
    /// cannot_connect_now
    CANNOT_CONNECT_NOW = b"57P03";
    /// idle_session_timeout
    IDLE_SESSION_TIMEOUT = b"57P05";
    /// system_error
    SYSTEM_ERROR = b"58000";
    /// io_error
    IO_ERROR = b"58030";
    /// data_corrupted
    DATA_CORRUPTED = b"XX001";
    /// internal_error
    INTERNAL_ERROR = b"XX000";
}

impl SqlState {
    /// The code's text.
    pub fn as_str(&self) -> &str {
        std::str::from_utf8(&self.0).unwrap_or("XX000")
    }

    /// A code from its text.
    pub fn parse(text: &str) -> Option<Self> {
        let bytes = <[u8; 5]>::try_from(text.as_bytes()).ok()?;
        bytes.iter().all(|byte| byte.is_ascii_digit() || byte.is_ascii_uppercase()).then_some(Self(bytes))
    }
}

impl fmt::Display for SqlState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// How bad it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Severity {
    /// The statement failed.
    Error,
    /// The session ends.
    Fatal,
    /// Every session ends.
    Panic,
    /// Nothing failed.
    Warning,
    /// Nothing failed.
    Notice,
}

impl Severity {
    /// The word on the wire.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Error => "ERROR",
            Self::Fatal => "FATAL",
            Self::Panic => "PANIC",
            Self::Warning => "WARNING",
            Self::Notice => "NOTICE",
        }
    }
}

/// The fields of an ErrorResponse or NoticeResponse that Roost writes and reads.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ErrorFields {
    /// How bad it is (`S` and `V`).
    pub severity: Severity,
    /// The error code (`C`).
    pub code: SqlState,
    /// The message (`M`).
    pub message: String,
    /// More about it (`D`).
    pub detail: Option<String>,
    /// What to do (`H`).
    pub hint: Option<String>,
}

impl ErrorFields {
    /// An error that ends the session.
    pub fn fatal(code: SqlState, message: impl Into<String>) -> Self {
        Self { severity: Severity::Fatal, code, message: message.into(), detail: None, hint: None }
    }

    /// With more about it.
    #[must_use]
    pub fn with_detail(mut self, detail: impl Into<String>) -> Self {
        self.detail = Some(detail.into());
        self
    }

    /// With what to do.
    #[must_use]
    pub fn with_hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    /// Reads the body of an ErrorResponse or NoticeResponse. Fields that are not known are passed over, as the protocol
    /// asks; a missing code counts as an internal error.
    pub fn parse(body: &[u8]) -> Self {
        let mut fields = Self::fatal(SqlState::INTERNAL_ERROR, "");
        for (tag, value) in raw_fields(body) {
            let value = String::from_utf8_lossy(value);
            match tag {
                b'V' => fields.severity = severity(&value),
                b'C' => fields.code = SqlState::parse(&value).unwrap_or(SqlState::INTERNAL_ERROR),
                b'M' => fields.message = value.into_owned(),
                b'D' => fields.detail = Some(value.into_owned()),
                b'H' => fields.hint = Some(value.into_owned()),
                _ => {}
            }
        }
        fields
    }
}

/// The fields in the body of an ErrorResponse or NoticeResponse, each with its type byte and without its NUL: in the
/// client's encoding, whatever that is.
pub fn raw_fields(body: &[u8]) -> impl Iterator<Item = (u8, &[u8])> {
    let mut rest = body;
    std::iter::from_fn(move || {
        let (&tag, after) = rest.split_first().filter(|(tag, _)| **tag != 0)?;
        let end = after.iter().position(|byte| *byte == 0).unwrap_or(after.len());
        rest = after.get(end + 1..).unwrap_or_default();
        Some((tag, after.get(..end).unwrap_or_default()))
    })
}

fn severity(word: &str) -> Severity {
    match word {
        "FATAL" => Severity::Fatal,
        "PANIC" => Severity::Panic,
        "WARNING" => Severity::Warning,
        "NOTICE" | "DEBUG" | "INFO" | "LOG" => Severity::Notice,
        _ => Severity::Error,
    }
}
