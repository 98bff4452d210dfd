//! How a device reaches guest pages: page sources, the map cache, pins.
