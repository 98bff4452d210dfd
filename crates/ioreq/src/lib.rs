//! Xen's ioreq page: slots, typed requests, answers, the pump and the IOREQ server.
