//! Client of xenstored: read, write, transactions, watches.
