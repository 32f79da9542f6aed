//! Server connections: opening one for a client's session, and cancelling what runs on it.
//!
//! The pool holds one server session per client session: it is opened when the client has authenticated and closed when
//! the client leaves, so no session state can travel from one client to another.
//!
//! - [`Hold`] is what a server session needs of the ladder: a presence hold for its lifetime, and an activity lease
//!   while Postgres owes it something.
//! - [`ServerSession`] is an open session that owes nothing: its startup has been read up to the first ReadyForQuery.
//! - [`Socket`] is its connection, or a client's, which wakes nobody without a reason; [`batch`] makes the sends of a
//!   thread's sockets together.
//! - [`CancelMap`] translates the key that a client was given into the key of the backend that serves it.

pub mod batch;
mod cancel;
mod hold;
mod session;
mod socket;

pub use cancel::{CancelError, CancelKey, CancelMap, CancelRegistration, CancelTarget, KeyLength};
pub use hold::Hold;
pub use session::{OpenError, ServerSession, ServerTarget};
pub use socket::Socket;
