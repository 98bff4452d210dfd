//! What is printed.

use super::mistake::printable;
use super::plan::{Plan, Planned};

/// The devices of a guest, in words.
pub(super) fn report(guest: &str, plan: &Plan) -> String {
    let mut text = match plan.devices.len() {
        0 => format!("{guest}: no virtio devices\n"),
        1 => format!("{guest}: 1 virtio device\n"),
        several => format!("{guest}: {several} virtio devices\n"),
    };
    for device in &plan.devices {
        text += &format!("  {}\n", printable(&headline(device)));
        if device.domain.is_none() && device.model.is_some() {
            let options = device.options.as_ref().map_or("defaults".to_owned(), ToString::to_string);
            text += &format!("    options: {}\n", printable(&options));
        }
    }
    if plan.needs_virtio_list {
        text += "xl reads virtio=[] since Xen 4.18, and reads past it before\n";
    }
    text
}

fn headline(device: &Planned) -> String {
    let Planned { called, place, model, options: _, domain } = device;
    let mut text = match model.as_ref().map(|model| model.kind()) {
        Some(kind) if !called.starts_with(kind) => format!("{kind} {called}"),
        _ => called.clone(),
    };
    if let Some(place) = place {
        text += &format!(" at {:#x}, interrupt {}", place.base, place.irq);
    }
    match (model, domain) {
        (_, Some(domain)) => text + &format!(": served by domain {domain}"),
        (Some(model), None) => text + &format!(": {}", model.host_end()),
        (None, None) => text + ": not known",
    }
}
