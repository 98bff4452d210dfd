//! The tables of docs/security.md and docs/conformance.md, made from the tests.
//!
//! What is to be shown stands in `hostile.toml` ([`rows`]) and `virtio.toml` ([`statements`]); what shows it are tests, found
//! by their names in the sources ([`sources`]); whether it is so, a run of them tells ([`run`]). [`pages`] puts all this
//! between two lines of a page. `make catalogue` does it; the test of this package finds pages that were not made anew.

pub mod pages;
pub mod rows;
pub mod run;
pub mod sources;
pub mod statements;
