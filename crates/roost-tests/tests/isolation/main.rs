//! Nothing of the host or of another database is in reach from inside a database: as its owner, and again as a superuser
//! who runs native code. And an owner never becomes superuser.

mod native;
mod owner;
mod superuser;
