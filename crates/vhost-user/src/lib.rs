//! Serves a device on a vhost-user socket, for any VMM to connect to.
