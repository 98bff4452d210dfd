//! Which queue is for what (virtio 1.2 §5.3.2).

/// What a queue is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Role {
    /// To the guest, from this port.
    Receive(usize),
    /// From the guest, to this port.
    Transmit(usize),
    /// Control messages to the guest.
    ControlReceive,
    /// Control messages from the guest.
    ControlTransmit,
}

/// The queue of control messages to the guest.
pub(crate) const CONTROL_RECEIVE: usize = 2;

impl Role {
    /// The first port's queues stand before those of control, all others behind.
    pub(crate) fn of(queue: usize) -> Self {
        match (queue, queue % 2) {
            (0, _) => Self::Receive(0),
            (1, _) => Self::Transmit(0),
            (CONTROL_RECEIVE, _) => Self::ControlReceive,
            (3, _) => Self::ControlTransmit,
            (_, 0) => Self::Receive(queue / 2 - 1),
            _ => Self::Transmit(queue / 2 - 1),
        }
    }
}

/// The queue to the guest of a port.
pub(crate) fn receive_queue(port: usize) -> usize {
    if port == 0 { 0 } else { 2 * port + 2 }
}

/// How many queues a console with so many ports has.
pub(crate) fn count(ports: usize) -> usize {
    if ports > 1 { 2 * ports + 2 } else { 2 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spec_5_3_2_queues_are_where_the_driver_looks_for_them() {
        let roles: Vec<_> = (0..count(3)).map(Role::of).collect();

        let expected = [
            Role::Receive(0),
            Role::Transmit(0),
            Role::ControlReceive,
            Role::ControlTransmit,
            Role::Receive(1),
            Role::Transmit(1),
            Role::Receive(2),
            Role::Transmit(2),
        ];
        assert_eq!(roles, expected);
        assert!((0..3).all(|port| roles[receive_queue(port)] == Role::Receive(port)));
        assert_eq!(count(1), 2, "without further ports there is no control queue");
    }
}
