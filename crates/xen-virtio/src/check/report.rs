//! What is printed.

use super::mistake::printable;
use super::plan::{Plan, Planned, What};
use super::server::Memory;
use crate::choice::Choice;

/// The devices of a guest, in words.
pub(super) fn report(guest: &str, plan: &Plan) -> String {
    let mut text = match plan.devices.len() {
        0 => format!("{guest}: no virtio devices\n"),
        1 => format!("{guest}: 1 virtio device\n"),
        several => format!("{guest}: {several} virtio devices\n"),
    };
    for Planned { place, what, memory } in &plan.devices {
        let place = place.map_or_else(
            || "without a place".to_owned(),
            |place| format!("at {:#x}, interrupt {}", place.base, place.irq),
        );
        text += &match what {
            What::Ours(choice) => format!("  {} {place}: {}\n", name(choice), printable(&choice.model.host_end())),
            What::Elsewhere { called, domain } => {
                format!("  {} {place}: served by domain {}\n", printable(called), printable(domain))
            }
        };
        if let What::Ours(choice) = what {
            let options = choice.options.as_ref().map_or("defaults".to_owned(), ToString::to_string);
            text += &format!("    options: {options}\n");
        }
        if let Some(words) = words_for(*memory) {
            text += &format!("    memory: {words}\n");
        }
    }
    if plan.needs_virtio_list && plan.mistakes.is_empty() {
        text += "xl reads virtio=[] since Xen 4.18, and reads past it before\n";
    }
    text
}

/// What the guest has to be ready for.
fn words_for(memory: Memory) -> Option<&'static str> {
    match memory {
        Memory::Frames => None,
        Memory::Grants { by_default: false } => {
            Some("by grants alone (grant_usage=1), for which its kernel needs CONFIG_XEN_VIRTIO")
        }
        Memory::Grants { by_default: true } => Some(
            "by grants alone, for which its kernel needs CONFIG_XEN_VIRTIO: grant_usage=1 is xl's default with a backend in \
             another domain",
        ),
    }
}

fn name(choice: &Choice) -> String {
    let (kind, called) = (choice.model.kind(), printable(&choice.called));
    if called.starts_with(kind) { called } else { format!("{kind} {called}") }
}
