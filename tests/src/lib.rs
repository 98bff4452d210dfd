//! Tests that look at the whole: the tree's rules, hostile guests.
