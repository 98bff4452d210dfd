//! Every stage meets every event; then the walks that real toolstacks take.

use super::*;
use crate::model::Class;

const A: DeviceId = DeviceId { class: Class::VirtioDisk, number: 51712 };
const B: DeviceId = DeviceId { class: Class::VirtioDisk, number: 51728 };
/// A device that the guest may touch at any time.
const U: DeviceId = DeviceId { class: Class::Virtio, number: 0 };

/// From which stage, what happens, to which stage, what is to be done.
type Row<T> = (Option<Stage>, T, Option<Stage>, Vec<Action>);

fn failed(id: DeviceId, reason: &str) -> Action {
    Action::Publish(id, News::Failed(reason.into()))
}

fn closed(id: DeviceId) -> Action {
    Action::Publish(id, News::Closed)
}

fn dead(reason: &str) -> Stage {
    Stage::Dead(Some(reason.into()))
}

fn ended(how: &str) -> Event {
    Event::WorkerEnded(how.into())
}

fn died() -> Event {
    Event::WorkerDied("boom".into())
}

fn given_up(id: DeviceId, why: &str) -> Action {
    Action::Report(id, Trouble::GivenUp(why.into()))
}

/// A guest whose only device is in `stage`, with the worker such a guest has.
fn guest_with(stage: Option<Stage>) -> Lifecycle {
    let worker = match stage {
        Some(Stage::Attaching | Stage::Serving | Stage::Detaching(_)) => Worker::Running,
        Some(Stage::Prepared | Stage::Detached(_)) => Worker::Stopping,
        Some(Stage::Vacant | Stage::Retrying | Stage::Following | Stage::GivenUp) => Worker::Running,
        Some(Stage::Preparing | Stage::Dead(_) | Stage::Foreign) | None => Worker::Absent,
    };
    Lifecycle { devices: stage.map(|stage| (A, stage)).into_iter().collect(), worker }
}

/// A guest with a device in `stage` for `A`, beside one that is served as `B`.
fn guest_with_neighbour(stage: Stage) -> Lifecycle {
    Lifecycle { devices: [(A, stage), (B, Stage::Serving)].into(), worker: Worker::Running }
}

fn check(stage: Option<Stage>, event: Event, then: Option<Stage>, todo: &[Action]) {
    let mut guest = guest_with(stage.clone());

    let actions = guest.handle(event.clone());

    assert_eq!((guest.stage(A), &*actions), (then.as_ref(), todo), "{stage:?} meets {event:?}");
}

#[test]
fn what_xenstore_shows() {
    use Sight::{Absent, Closed, Closing, Live, New};
    use Stage::{Attaching, Detached, Detaching, Preparing, Serving};
    use Then::{Bury, Close, Forget};
    let reported = Action::Report(A, Trouble::Foreign);
    let detach = Action::Detach(A);
    let gone = None::<Stage>;
    let rows: Vec<Row<Sight>> = vec![
        (None, New, Some(Preparing), vec![Action::Prepare(A)]),
        (None, Live, Some(Stage::Foreign), vec![reported]),
        (None, Closing, gone.clone(), vec![closed(A)]),
        (None, Closed, gone.clone(), vec![]),
        (None, Absent, gone.clone(), vec![]),
        (Some(Preparing), New, Some(Preparing), vec![]),
        (Some(Preparing), Live, Some(Preparing), vec![]),
        (Some(Preparing), Closing, gone.clone(), vec![closed(A)]),
        (Some(Preparing), Absent, gone.clone(), vec![]),
        (Some(Stage::Prepared), Closing, gone.clone(), vec![closed(A)]),
        (Some(Stage::Prepared), Absent, gone.clone(), vec![]),
        (Some(Attaching), New, Some(Attaching), vec![]),
        (Some(Attaching), Closing, Some(Detaching(Close)), vec![detach.clone()]),
        (Some(Attaching), Absent, Some(Detaching(Forget)), vec![detach.clone()]),
        (Some(Serving), New, Some(Serving), vec![Action::Publish(A, News::Ready)]),
        (Some(Serving), Live, Some(Serving), vec![]),
        (Some(Stage::Following), New, Some(Stage::Following), vec![Action::Publish(A, News::Ready)]),
        (Some(Stage::Following), Closing, Some(Detaching(Close)), vec![detach.clone()]),
        (Some(Stage::Retrying), New, Some(Stage::Retrying), vec![]),
        (Some(Stage::Retrying), Absent, Some(Detaching(Forget)), vec![detach.clone()]),
        (Some(Stage::GivenUp), New, Some(Stage::GivenUp), vec![]),
        (Some(Stage::GivenUp), Closing, Some(Detaching(Close)), vec![detach.clone()]),
        (Some(Serving), Closing, Some(Detaching(Close)), vec![detach.clone()]),
        (Some(Serving), Closed, Some(Detaching(Forget)), vec![detach.clone()]),
        (Some(Serving), Absent, Some(Detaching(Forget)), vec![detach]),
        (Some(Detaching(Close)), Closing, Some(Detaching(Close)), vec![]),
        (Some(Detaching(Close)), Absent, Some(Detaching(Forget)), vec![]),
        (Some(Detaching(Bury)), Closing, Some(Detaching(Close)), vec![]),
        (Some(Detaching(Forget)), New, Some(Detaching(Forget)), vec![]),
        (Some(Detached(Bury)), Closing, Some(Detached(Close)), vec![]),
        (Some(Detached(Close)), Absent, Some(Detached(Forget)), vec![]),
        (Some(dead("why")), New, Some(dead("why")), vec![failed(A, "why")]),
        (Some(Stage::Dead(None)), New, Some(Stage::Dead(None)), vec![]),
        (Some(Stage::Dead(None)), Live, Some(Stage::Dead(None)), vec![]),
        (Some(dead("why")), Absent, gone.clone(), vec![]),
        (Some(dead("why")), Closing, gone.clone(), vec![closed(A)]),
        (Some(Stage::Dead(None)), Closed, gone.clone(), vec![]),
        (Some(Stage::Foreign), Live, Some(Stage::Foreign), vec![]),
        (Some(Stage::Foreign), Closing, gone.clone(), vec![closed(A)]),
        (Some(Stage::Foreign), Absent, gone, vec![]),
    ];
    for (stage, sight, then, todo) in rows {
        check(stage, Event::Seen(A, sight), then, &todo);
    }
}

#[test]
fn what_worker_and_preparation_say() {
    use Stage::{Attaching, Detached, Detaching, Preparing, Serving};
    use Then::{Bury, Close, Forget};
    let died = |how: &str| Action::Report(A, Trouble::WorkerDied(how.into()));
    let give_up = vec![Action::GiveUp(A), given_up(A, "why")];
    let refused = || Event::Refused(A, "why".into());
    let (attach, stop, ready) = (Action::Attach(A), Action::StopWorker, Action::Publish(A, News::Ready));
    let rows: Vec<Row<Event>> = vec![
        (Some(Preparing), Event::Prepared(A), Some(Attaching), vec![attach.clone()]),
        (Some(Preparing), refused(), Some(dead("why")), vec![failed(A, "why")]),
        (Some(Attaching), Event::Attached(A), Some(Serving), vec![ready]),
        (Some(Attaching), refused(), Some(dead("why")), vec![failed(A, "why"), stop.clone()]),
        (Some(Attaching), ended("boom"), Some(dead("boom")), vec![failed(A, "boom")]),
        (Some(Serving), ended("boom"), Some(Stage::Dead(None)), vec![died("boom")]),
        (Some(Stage::Retrying), Event::Attached(A), Some(Serving), vec![Action::Publish(A, News::Ready)]),
        (Some(Stage::Retrying), refused(), Some(dead("why")), vec![failed(A, "why"), stop.clone()]),
        (Some(Stage::Following), Event::Attached(A), Some(Serving), vec![]),
        (Some(Stage::Following), refused(), Some(Stage::GivenUp), give_up),
        (Some(Stage::Following), ended("boom"), Some(Stage::Dead(None)), vec![died("boom")]),
        (Some(Stage::GivenUp), Event::Attached(A), Some(Stage::GivenUp), vec![]),
        (Some(Stage::GivenUp), refused(), Some(Stage::GivenUp), vec![]),
        (Some(Stage::GivenUp), ended("boom"), Some(Stage::Dead(None)), vec![died("boom")]),
        (Some(Detaching(Close)), Event::Detached(A), Some(Detached(Close)), vec![stop.clone()]),
        (Some(Detaching(Close)), refused(), Some(Detached(Close)), vec![stop]),
        (Some(Detaching(Close)), Event::Attached(A), Some(Detaching(Close)), vec![]),
        (Some(Detaching(Close)), ended("boom"), None, vec![closed(A)]),
        (Some(Detaching(Forget)), ended("boom"), None, vec![]),
        (Some(Detaching(Bury)), ended("boom"), Some(Stage::Dead(None)), vec![]),
        (Some(Detached(Close)), ended("in order"), None, vec![closed(A)]),
        (Some(Detached(Forget)), ended("in order"), None, vec![]),
        (Some(Detached(Bury)), ended("in order"), Some(Stage::Dead(None)), vec![]),
        (Some(Stage::Prepared), ended("in order"), Some(Attaching), vec![attach]),
        (Some(Preparing), ended("in order"), Some(Preparing), vec![]),
    ];
    for (stage, event, then, todo) in rows {
        check(stage, event, then, &todo);
    }
}

#[test]
fn words_that_nobody_waits_for_change_nothing() {
    let stages = [None, Some(Stage::Serving), Some(Stage::Detached(Then::Close)), Some(dead("why"))];
    for stage in stages {
        for event in [Event::Prepared(A), Event::Attached(A), Event::Detached(A), Event::Refused(A, "no".into())] {
            check(stage.clone(), event, stage.clone(), &[]);
        }
    }
}

#[test]
fn a_dead_domain_is_let_go_of_at_once_and_not_taken_for_a_foreign_one_after() {
    let mut guest = guest_with(Some(Stage::Serving));

    assert_eq!(guest.handle(Event::DomainGone), [Action::Detach(A)]);
    assert_eq!(guest.handle(Event::Detached(A)), [Action::StopWorker]);
    assert_eq!(guest.handle(ended("in order")), []);
    assert_eq!(guest.handle(Event::Seen(A, Sight::Live)), []);
    assert_eq!(guest.handle(Event::Seen(A, Sight::Absent)), []);
    assert!(guest.is_over());
}

#[test]
fn a_toolstack_that_waits_is_answered_even_if_the_domain_is_dead_by_then() {
    let mut guest = guest_with(Some(Stage::Serving));

    assert_eq!(guest.handle(Event::Seen(A, Sight::Closing)), [Action::Detach(A)]);
    assert_eq!(guest.handle(Event::DomainGone), []);
    assert_eq!(guest.handle(Event::Detached(A)), [Action::StopWorker]);
    assert_eq!(guest.handle(ended("in order")), [closed(A)]);
}

#[test]
fn the_last_device_is_closed_only_when_the_worker_has_ended() {
    let mut guest = guest_with_neighbour(Stage::Serving);

    assert_eq!(guest.handle(Event::Seen(A, Sight::Closing)), [Action::Detach(A)]);
    assert_eq!(guest.handle(Event::Seen(B, Sight::Closing)), [Action::Detach(B)]);
    assert_eq!(guest.handle(Event::Detached(A)), [closed(A)]);
    assert_eq!(guest.handle(Event::Detached(B)), [Action::StopWorker]);
    assert!(guest.is_closing());
    assert_eq!(guest.handle(ended("in order")), [closed(B)]);
    assert!(guest.is_over());
}

#[test]
fn a_worker_that_does_not_let_go_is_killed_and_the_toolstack_answered() {
    let mut guest = guest_with_neighbour(Stage::Serving);
    let _ = guest.handle(Event::Seen(A, Sight::Closing));

    assert_eq!(guest.handle(Event::Overdue), [Action::KillWorker]);
    let died = Action::Report(B, Trouble::WorkerDied("killed".into()));
    assert_eq!(guest.handle(ended("killed")), [closed(A), died]);
}

#[test]
fn nothing_is_overdue_without_a_worker() {
    check(Some(dead("why")), Event::Overdue, Some(dead("why")), &[]);
}

#[test]
fn a_refused_device_leaves_its_neighbour_alone() {
    let mut guest = guest_with_neighbour(Stage::Attaching);

    assert_eq!(guest.handle(Event::Refused(A, "why".into())), [failed(A, "why")]);
    assert_eq!(guest.stage(B), Some(&Stage::Serving));
}

#[test]
fn a_device_that_comes_while_the_worker_ends_gets_a_new_worker() {
    let mut guest = guest_with(Some(Stage::Detached(Then::Close)));

    assert_eq!(guest.handle(Event::Seen(B, Sight::New)), [Action::Prepare(B)]);
    assert_eq!(guest.handle(Event::Prepared(B)), []);
    assert_eq!(guest.handle(ended("in order")), [closed(A), Action::Attach(B)]);
    assert_eq!(guest.handle(Event::Attached(B)), [Action::Publish(B, News::Ready)]);
}

/// A guest whose only device may be touched at any time and is being prepared.
fn urgent_guest() -> Lifecycle {
    let mut guest = Lifecycle::default();
    assert_eq!(guest.handle(Event::Seen(U, Sight::New)), [Action::Reserve(U), Action::Prepare(U)]);
    guest
}

#[test]
fn the_window_of_a_device_that_nobody_waits_for_is_claimed_before_it_is_prepared() {
    let mut guest = urgent_guest();

    assert_eq!(guest.handle(Event::Prepared(U)), [Action::Attach(U)]);
    assert_eq!(guest.handle(Event::Attached(U)), [Action::Publish(U, News::Ready)]);
    assert_eq!(guest.handle(Event::Seen(U, Sight::Closing)), [Action::Detach(U)]);
    assert_eq!(guest.handle(Event::Detached(U)), [Action::StopWorker]);
    assert_eq!(guest.handle(ended("in order")), [closed(U)]);
    assert!(guest.is_over());
}

#[test]
fn a_refused_device_that_nobody_waits_for_leaves_an_empty_window_until_the_guest_ends() {
    for stage in [Stage::Preparing, Stage::Attaching] {
        let mut guest = urgent_guest();
        guest.devices.insert(U, stage);

        assert_eq!(guest.handle(Event::Refused(U, "why".into())), [Action::Vacate(U), failed(U, "why")]);
        assert_eq!(guest.handle(Event::Refused(U, "again".into())), []);
        assert_eq!(guest.handle(Event::Seen(U, Sight::New)), [], "nobody waits to hear of it");
        assert!(guest.is_in_use());
        assert_eq!(guest.handle(Event::Seen(U, Sight::Closing)), [Action::Detach(U)]);
        assert_eq!(guest.handle(Event::Detached(U)), [Action::StopWorker]);
        assert_eq!(guest.handle(ended("in order")), [closed(U)]);
    }
}

#[test]
fn a_guest_that_ends_while_its_device_is_prepared_gets_its_window_back_first() {
    let mut guest = urgent_guest();

    assert_eq!(guest.handle(Event::Seen(U, Sight::Closing)), [Action::Detach(U)]);
    assert_eq!(guest.handle(Event::Prepared(U)), []);
    assert_eq!(guest.handle(Event::Detached(U)), [Action::StopWorker]);
    assert_eq!(guest.handle(ended("in order")), [closed(U)]);
}

#[test]
fn a_window_that_cannot_be_claimed_makes_its_device_fail_and_is_not_tried_for_ever() {
    let mut guest = urgent_guest();

    assert_eq!(guest.handle(ended("no process")), [failed(U, "no process")]);
    assert_eq!(guest.handle(Event::Prepared(U)), []);
    assert_eq!(guest.handle(Event::Seen(U, Sight::Closing)), [closed(U)]);
    assert!(guest.is_over());
}

#[test]
fn a_window_asked_for_while_the_worker_ends_is_claimed_by_the_next() {
    let mut guest = guest_with(Some(Stage::Detached(Then::Close)));

    assert_eq!(guest.handle(Event::Seen(U, Sight::New)), [Action::Prepare(U)]);
    assert_eq!(guest.handle(ended("in order")), [closed(A), Action::Reserve(U)]);
    assert_eq!(guest.handle(Event::Prepared(U)), [Action::Attach(U)]);
}

#[test]
fn an_empty_window_goes_with_its_worker() {
    let mut guest = urgent_guest();
    let _ = guest.handle(Event::Refused(U, "why".into()));

    assert_eq!(guest.handle(ended("boom")), []);
    assert_eq!(guest.stage(U), Some(&Stage::Dead(None)));
}

/// A device in some stage for `A` when the worker dies: its stage while there is none, what the next one is told of it, and
/// what else is done at once.
#[test]
fn a_worker_that_dies_is_followed_by_one_that_goes_on_with_each_device() {
    use Stage::{Attaching, Detached, Detaching, Following, GivenUp, Prepared, Preparing, Retrying, Serving, Vacant};
    use Then::{Bury, Close, Forget};
    let rows = [
        (Preparing, Some(Preparing), None, vec![]),
        (Prepared, Some(Prepared), Some(Action::Attach(A)), vec![]),
        (Attaching, Some(Retrying), Some(Action::Attach(A)), vec![]),
        (Retrying, Some(dead("boom")), None, vec![failed(A, "boom")]),
        (Serving, Some(Following), Some(Action::Attach(A)), vec![]),
        (Following, Some(Following), Some(Action::Attach(A)), vec![]),
        (GivenUp, Some(GivenUp), Some(Action::GiveUp(A)), vec![]),
        (Vacant, Some(Vacant), Some(Action::Vacate(A)), vec![]),
        (Detaching(Close), None, None, vec![closed(A)]),
        (Detaching(Forget), None, None, vec![]),
        (Detaching(Bury), Some(Stage::Dead(None)), None, vec![]),
        (Detached(Close), None, None, vec![closed(A)]),
        (dead("why"), Some(dead("why")), None, vec![]),
        (Stage::Foreign, Some(Stage::Foreign), None, vec![]),
    ];
    for (stage, meanwhile, told, mut at_once) in rows {
        let mut guest = guest_with_neighbour(stage.clone());
        at_once.push(Action::FollowWorker);
        assert_eq!(guest.handle(died()), at_once, "{stage:?}");
        assert_eq!(guest.stage(A), meanwhile.as_ref(), "{stage:?}");
        assert!(guest.wants_worker() && guest.is_following());

        let told: Vec<_> = told.into_iter().chain([Action::Attach(B)]).collect();
        assert_eq!(guest.handle(Event::WorkerFollows), told, "{stage:?}");
        assert_eq!(guest.handle(Event::Attached(B)), [], "the toolstack does not hear of it");
        assert_eq!(guest.stage(B), Some(&Serving));
    }
}

#[test]
fn a_worker_that_dies_when_nobody_needs_it_is_not_followed() {
    for stage in [Stage::Detaching(Then::Close), Stage::Detached(Then::Close)] {
        let mut guest = guest_with(Some(stage));
        assert_eq!(guest.handle(died()), [closed(A)]);
        assert!(guest.is_over());
    }
}

#[test]
fn windows_of_devices_that_nobody_waits_for_are_claimed_by_the_next_worker_whatever_came_of_them() {
    let mut guest = urgent_guest();
    assert_eq!(guest.handle(died()), [Action::FollowWorker]);
    assert_eq!(guest.handle(Event::WorkerFollows), [Action::Reserve(U)]);
    assert_eq!(guest.handle(died()), [Action::FollowWorker]);
    assert_eq!(guest.handle(Event::Prepared(U)), [], "it waits for the next worker");
    assert_eq!(guest.handle(Event::WorkerFollows), [Action::Attach(U)]);

    let mut guest = urgent_guest();
    assert_eq!(guest.handle(died()), [Action::FollowWorker]);
    assert_eq!(guest.handle(Event::Refused(U, "why".into())), [failed(U, "why")]);
    assert_eq!(guest.handle(Event::WorkerFollows), [Action::Vacate(U)]);
}

#[test]
fn what_comes_or_closes_while_there_is_no_worker_is_done_without_one() {
    let mut guest = guest_with_neighbour(Stage::Serving);
    assert_eq!(guest.handle(died()), [Action::FollowWorker]);
    assert_eq!(guest.handle(Event::Seen(U, Sight::New)), [Action::Prepare(U)]);
    assert_eq!(guest.handle(Event::Seen(A, Sight::Closing)), [closed(A)]);
    assert_eq!(guest.handle(Event::WorkerFollows), [Action::Attach(B), Action::Reserve(U)]);

    let mut guest = guest_with(Some(Stage::Serving));
    assert_eq!(guest.handle(died()), [Action::FollowWorker]);
    assert_eq!(guest.handle(Event::DomainGone), []);
    assert!(!guest.wants_worker(), "nobody needs it any more");
    assert_eq!(guest.handle(Event::WorkerFollows), [], "it was too late");
}

#[test]
fn a_device_that_is_closed_before_the_next_worker_serves_it_is_let_go_of_by_that() {
    let mut guest = guest_with(Some(Stage::Serving));
    let _ = guest.handle(died());
    assert_eq!(guest.handle(Event::WorkerFollows), [Action::Attach(A)]);
    assert_eq!(guest.handle(Event::Seen(A, Sight::Closing)), [Action::Detach(A)]);
    assert_eq!(guest.handle(Event::Attached(A)), []);
    assert_eq!(guest.handle(Event::Detached(A)), [Action::StopWorker]);
    assert_eq!(guest.handle(ended("in order")), [closed(A)]);
}

#[test]
fn a_worker_that_dies_as_it_is_told_to_end_has_ended() {
    let mut guest = guest_with(Some(Stage::Detached(Then::Close)));
    assert_eq!(guest.handle(died()), [closed(A)]);
    assert!(guest.is_over());
}

#[test]
fn where_workers_die_one_after_the_other_devices_are_given_up_and_answered_for() {
    let mut guest = guest_with_neighbour(Stage::Attaching);
    let die = || Event::WorkersDie("six died".into());
    assert_eq!(guest.handle(die()), [failed(A, "six died"), given_up(B, "six died"), Action::FollowWorker]);
    assert!(!guest.devices.values().any(|stage| *stage == Stage::Following));
    assert_eq!(guest.handle(Event::WorkerFollows), [Action::GiveUp(B)]);
    assert_eq!(guest.handle(die()), [Action::FollowWorker], "it is said once");
    assert_eq!(guest.handle(Event::WorkerFollows), [Action::GiveUp(B)]);
    assert_eq!(guest.handle(Event::Seen(B, Sight::Closing)), [Action::Detach(B)]);
    assert_eq!(guest.handle(Event::Detached(B)), [Action::StopWorker]);
    assert_eq!(guest.handle(ended("in order")), [closed(B)]);
}
