//! Nothing to build: the tests of this package look at the whole tree.
