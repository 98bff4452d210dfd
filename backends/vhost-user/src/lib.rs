//! A virtio device whose backend is another program, reached by vhost-user.
