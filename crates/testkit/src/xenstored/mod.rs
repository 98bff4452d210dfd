//! An in-memory xenstored that speaks the wire protocol on a Unix socket.
