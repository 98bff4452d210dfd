//! /dev/xen/{privcmd,evtchn,gntdev}: the ABI and safe owners of what they give out.
