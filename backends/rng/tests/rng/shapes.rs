//! Rows G05 and G06 as tables: chains of any shape, and sources in any mood.

use testkit::cases;
use testkit::driver::Descriptor;

use crate::harness::{BUFFERS, Mood, Rig, eventually, random};

/// The most bytes of a chain, both directions together.
const MOST: u64 = 64 << 10;

/// Lengths of the buffers of a chain.
#[derive(Clone, Debug)]
struct Shape {
    reads: Vec<u32>,
    writes: Vec<u32>,
    /// Those to write come first, which no driver may do (virtio 1.2 §2.7.4.2).
    is_reversed: bool,
}

impl Shape {
    /// How much the device gives, from a source that gives so much at a time; `None` if it needs a reset.
    fn given(&self, most: usize) -> Option<usize> {
        let bytes: u64 = self.reads.iter().chain(&self.writes).map(|len| u64::from(*len)).sum();
        let room: u32 = self.writes.iter().fold(0, |room, len| room.saturating_add(*len));
        (!self.is_reversed && bytes <= MOST).then_some((room as usize).min(most))
    }

    /// The buffers, each with a gap behind it.
    fn chain(&self) -> Vec<Descriptor> {
        let mut at = BUFFERS;
        let mut lay_out = |len: u32, buffer: fn(u64, u32) -> Descriptor| {
            let here = buffer(at, len);
            at += u64::from(len.min(0x1_0000)) + 99;
            here
        };
        let reads: Vec<_> = self.reads.iter().map(|len| lay_out(*len, Descriptor::readable)).collect();
        let writes: Vec<_> = self.writes.iter().map(|len| lay_out(*len, Descriptor::writable)).collect();
        if self.is_reversed { [writes, reads].concat() } else { [reads, writes].concat() }
    }
}

fn shapes() -> Vec<Shape> {
    let few: [&[u32]; 7] = [&[], &[0], &[1], &[5, 0], &[0x8000], &[0x1_0000], &[u32::MAX]];
    let lens = [0, 1, 7, 0x7fff, 0x8000, 0xffff, 0x1_0000, 0x1_0001, u32::MAX];
    let one = lens.map(|len| vec![len]);
    let two = lens.into_iter().flat_map(|first| [0, 1, 0x8000].map(|second| vec![first, second]));
    let many = [vec![1; 20], vec![0; 20], vec![0, 0, 9, 0, 100, 0], vec![0x1000; 16], vec![0x1000; 17]];
    let writes: Vec<Vec<u32>> = one.into_iter().chain(two).chain(many).chain([vec![]]).collect();
    let mut all = Vec::new();
    for (reads, writes) in few.into_iter().flat_map(|reads| writes.iter().map(move |writes| (reads, writes))) {
        let shape = Shape { reads: reads.to_vec(), writes: writes.clone(), is_reversed: false };
        if !reads.is_empty() && !writes.is_empty() && (reads.len() + writes.len()) % 3 == 0 {
            all.push(Shape { is_reversed: true, ..shape.clone() });
        }
        if !(reads.is_empty() && writes.is_empty()) {
            all.push(shape);
        }
    }
    all
}

#[test]
fn g05_a_chain_of_any_shape_is_filled_in_order_or_refused_whole() {
    for most in [usize::MAX, 100] {
        let rig = Rig::new(Mood::Gives(most));
        cases::each(shapes(), |shape| {
            let (chain, asked) = (shape.chain(), rig.source.asked());
            let before: Vec<Vec<u8>> = chain.iter().map(|buffer| contents(&rig, buffer)).collect();
            match shape.given(most) {
                None => {
                    rig.offer(0, &chain);
                    eventually("the device asks for a reset", || rig.needs_reset());
                    assert_eq!(rig.source.asked(), asked);
                    rig.reset();
                }
                Some(given) => {
                    assert_eq!(rig.run(&chain).len as usize, given);
                    assert_eq!(rig.source.asked() - asked, u64::from(given > 0));
                    let mut expected = random(given);
                    for (buffer, before) in chain.iter().zip(before) {
                        let count = if buffer.is_writable() { expected.len().min(before.len()) } else { 0 };
                        let filled: Vec<u8> = expected.drain(..count).collect();
                        assert!(contents(&rig, buffer) == [&filled[..], &before[count..]].concat());
                    }
                }
            }
        });
        rig.assert_alive();
    }
}

/// What stands where a buffer is, as far as a chain may reach.
fn contents(rig: &Rig, buffer: &Descriptor) -> Vec<u8> {
    rig.bytes(buffer.addr, buffer.len.min(0x1_0000) as usize)
}

#[test]
fn spec_5_4_6_2_a_buffer_gets_a_byte_or_more_and_no_more_than_the_source_gave() {
    let lens = [1, 2, 63, 64, 65, 4096, 0x1_0000];
    let inputs = lens.into_iter().flat_map(|len| [1, 2, 64, 100, 0xffff, usize::MAX].map(|gives| (len, gives)));
    let rig = Rig::new(Mood::Gives(1));
    cases::each(inputs, |(len, gives)| {
        rig.source.set(Mood::Gives(gives));
        let given = rig.ask(len);
        assert_eq!(given, random((len as usize).min(gives)));
        assert!(!given.is_empty());
    });
}
