//! A server for network block devices (NBD).
//!
//! Fixed newstyle handshake, options with limits, simple and structured replies, block status with
//! `base:allocation`, trim, write-zeroes, FUA, flush, several connections, TLS. The protocol is
//! doc/proto.md of the NBD project. What is served is an [`Export`]; this crate knows nothing of
//! snapshots, images or storage.
//!
//! Each connection has a thread, which takes all requests that have arrived with one call of the
//! system, answers those that need not wait from the page cache at once, hands the others to helpers,
//! and sends all answers with one call. Junk ends the connection it came on, and no other; a client that does not
//! read its answers keeps its own thread waiting, and never a helper.

mod connections;
mod export;
mod handshake;
mod line;
mod pool;
mod server;
mod socket;
mod tls;
mod transmit;
mod wire;

pub use connections::{CONNECTIONS_MAX, LOCAL_MIN, STRANGERS_MAX};
pub use export::{Export, Extent, Limits};
pub use server::{Announced, Listener, Served, Server};
pub use tls::Tls;
pub use wire::REQUEST_MAX;
