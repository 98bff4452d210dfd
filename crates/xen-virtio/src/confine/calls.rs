//! System calls: those that serving takes are let through, some only with certain arguments. Any other ends the process.
//!
//! A few that libraries try, and do without where they are not there, are answered as by a kernel that does not have them.
//! The lists are what strace showed of the tests and what the lab's workers needed, so each line says who needs it.
//!
//! One of them is a way around the others: rings of io_uring take operations that no filter sees, opening files and making
//! sockets among them. What holds there is all that stands around: no file but an empty directory, no network, no rights,
//! and Landlock. A host that wants no rings at all sets kernel.io_uring_disabled; disks then work without.

use std::collections::BTreeMap;

use anyhow::Context;
use rustix::process::getpid;
use seccompiler::{
    BackendError, BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter,
    SeccompRule, TargetArch, apply_filter_all_threads,
};
use xen_ioctls::abi::{linux_evtchn, linux_gntdev, linux_privcmd};

type Rules = BTreeMap<i64, Vec<SeccompRule>>;

/// What is let through whatever its arguments are. Others are, with some arguments only: see `restrict`.
pub const ALLOWED: &[i64] = &[
    // Event channels, eventfds, taps, ptys, logs: read and written as they are. Sockets, in pieces.
    libc::SYS_read,
    libc::SYS_write,
    libc::SYS_readv,
    libc::SYS_writev,
    // Images: formats, and raw ones where the host has no io_uring.
    libc::SYS_pread64,
    libc::SYS_pwrite64,
    libc::SYS_preadv,
    libc::SYS_pwritev,
    libc::SYS_pwritev2,
    libc::SYS_fdatasync,
    libc::SYS_fsync,
    libc::SYS_fallocate,
    libc::SYS_ftruncate,
    libc::SYS_io_uring_setup,
    libc::SYS_io_uring_enter,
    libc::SYS_io_uring_register,
    // What a descriptor is that came from the broker, and how large.
    libc::SYS_fstat,
    libc::SYS_statx,
    libc::SYS_fstatfs,
    libc::SYS_lseek,
    libc::SYS_getsockopt,
    libc::SYS_close,
    libc::SYS_dup,
    // A worker that takes over waits for the former one's last writes.
    libc::SYS_flock,
    // The broker; connections of sockets, consoles, NBD.
    libc::SYS_sendmsg,
    libc::SYS_recvmsg,
    libc::SYS_sendto,
    libc::SYS_recvfrom,
    libc::SYS_accept4,
    libc::SYS_shutdown,
    // Waiting.
    libc::SYS_ppoll,
    libc::SYS_epoll_create1,
    libc::SYS_epoll_ctl,
    libc::SYS_epoll_pwait,
    libc::SYS_eventfd2,
    libc::SYS_timerfd_create,
    libc::SYS_timerfd_settime,
    libc::SYS_clock_nanosleep,
    libc::SYS_futex,
    libc::SYS_restart_syscall,
    // Where the processor's counter is not for programs to read.
    libc::SYS_clock_gettime,
    // Memory. malloc takes an error of brk for an address. What others' backends share is a memfd.
    libc::SYS_brk,
    libc::SYS_munmap,
    libc::SYS_madvise,
    libc::SYS_memfd_create,
    // Threads, and their end.
    libc::SYS_rseq,
    libc::SYS_sched_yield,
    // malloc, to have as many arenas as fit.
    libc::SYS_sched_getaffinity,
    libc::SYS_rt_sigprocmask,
    libc::SYS_rt_sigaction,
    libc::SYS_rt_sigreturn,
    libc::SYS_getpid,
    libc::SYS_gettid,
    libc::SYS_exit,
    libc::SYS_exit_group,
    // Entropy.
    libc::SYS_getrandom,
];

/// As above, where the processor's system calls have older forms that libraries still use.
#[cfg(target_arch = "x86_64")]
const ALLOWED_HERE: &[i64] = &[libc::SYS_poll, libc::SYS_epoll_wait];
#[cfg(not(target_arch = "x86_64"))]
const ALLOWED_HERE: &[i64] = &[];

/// What is answered with ENOENT: to open a file by its name. malloc looks for the number of processors in /sys.
pub const OPENS_NOTHING: i64 = libc::SYS_openat;

/// What is answered with ENOSYS.
pub const REFUSED: &[i64] = &[
    // Its flags are in memory, where a filter cannot see them; clone follows.
    libc::SYS_clone3,
    // malloc then copies what it cannot grow in place.
    libc::SYS_mremap,
    // io::copy then reads and writes.
    libc::SYS_copy_file_range,
    libc::SYS_sendfile,
    libc::SYS_splice,
    // Threads do without stacks that tell of their overflow, and without robust mutexes.
    libc::SYS_sigaltstack,
    libc::SYS_set_robust_list,
];

/// <linux/fs.h>
const BLKDISCARD: u32 = 0x1277;
const BLKSSZGET: u32 = 0x1268;
const BLKPBSZGET: u32 = 0x127b;
const BLKGETSIZE64: u32 = 0x8008_1272;

/// Requests of ioctl.
const IOCTLS: &[u32] = &[
    linux_privcmd::MMAPBATCH_V2,
    linux_privcmd::DM_OP,
    linux_privcmd::MMAP_RESOURCE,
    linux_privcmd::IRQFD,
    linux_evtchn::BIND_INTERDOMAIN,
    linux_evtchn::UNBIND,
    linux_evtchn::NOTIFY,
    linux_evtchn::RESET,
    linux_gntdev::MAP_GRANT_REF,
    linux_gntdev::UNMAP_GRANT_REF,
    linux_gntdev::GRANT_COPY,
    BLKDISCARD,
    BLKSSZGET,
    BLKPBSZGET,
    BLKGETSIZE64,
    TUNSETOFFLOAD,
    TUNSETQUEUE,
    TIOCGWINSZ,
    FIONBIO,
];

/// As in the headers of both architectures.
const TUNSETOFFLOAD: u32 = 0x4004_54d0;
const TUNSETQUEUE: u32 = 0x4004_54d9;
const TIOCGWINSZ: u32 = 0x5413;
const FIONBIO: u32 = 0x5421;

/// Commands of fcntl: copies of descriptors, whether they block, seals of a memfd, locks. Not those that have signals sent.
const FCNTLS: &[i32] = &[
    libc::F_DUPFD_CLOEXEC,
    libc::F_GETFD,
    libc::F_GETFL,
    libc::F_SETFL,
    libc::F_ADD_SEALS,
    libc::F_GET_SEALS,
    libc::F_OFD_SETLK,
];

/// Operations of prctl: a thread's name, how exactly it is woken, and malloc's names for its memory.
const PRCTLS: &[i32] = &[libc::PR_SET_NAME, libc::PR_SET_TIMERSLACK, libc::PR_SET_VMA];

/// All that clone could make new beside a thread.
const NAMESPACES: i32 = libc::CLONE_NEWNS
    | libc::CLONE_NEWCGROUP
    | libc::CLONE_NEWUTS
    | libc::CLONE_NEWIPC
    | libc::CLONE_NEWUSER
    | libc::CLONE_NEWPID
    | libc::CLONE_NEWNET;

/// Puts the filters on all threads of this process.
///
/// # Errors
/// The kernel has no seccomp, or it is an architecture that has no lists here.
pub(super) fn restrict() -> anyhow::Result<()> {
    // Of what several filters say the strictest counts, and to end the process is stricter than an error: what one answers
    // with an error, the last has to let through.
    answer(REFUSED, libc::ENOSYS)?;
    answer(&[OPENS_NOTHING], libc::ENOENT)?;
    apply(allowed()?, SeccompAction::KillProcess, SeccompAction::Allow)
}

fn answer(calls: &[i64], errno: i32) -> anyhow::Result<()> {
    let rules = calls.iter().map(|call| (*call, Vec::new())).collect();
    apply(rules, SeccompAction::Allow, SeccompAction::Errno(errno.unsigned_abs()))
}

fn apply(rules: Rules, otherwise: SeccompAction, then: SeccompAction) -> anyhow::Result<()> {
    let architecture = TargetArch::try_from(std::env::consts::ARCH)?;
    let filter: BpfProgram = SeccompFilter::new(rules, otherwise, then, architecture)?.try_into()?;
    apply_filter_all_threads(&filter).context("seccomp (CONFIG_SECCOMP_FILTER)")
}

fn allowed() -> Result<Rules, BackendError> {
    let always = [ALLOWED, ALLOWED_HERE, REFUSED, &[OPENS_NOTHING]].concat();
    let mut rules: Rules = always.into_iter().map(|call| (call, Vec::new())).collect();
    rules.insert(libc::SYS_ioctl, one_of(1, IOCTLS.iter().copied().map(u64::from))?);
    rules.insert(libc::SYS_fcntl, one_of(1, FCNTLS.iter().map(bits))?);
    rules.insert(libc::SYS_prctl, one_of(0, PRCTLS.iter().map(bits))?);
    // To itself: a panic that aborts, and the pump's call to stop.
    rules.insert(libc::SYS_tgkill, one_of(0, [bits(&getpid().as_raw_nonzero().get())])?);
    // The way for another program's backend to say something by itself.
    rules.insert(libc::SYS_socketpair, one_of(0, [bits(&libc::AF_UNIX)])?);
    // No memory that is written is run.
    for call in [libc::SYS_mmap, libc::SYS_mprotect] {
        rules.insert(call, masked(2, bits(&libc::PROT_EXEC), 0)?);
    }
    let thread = bits(&libc::CLONE_THREAD);
    rules.insert(libc::SYS_clone, masked(0, bits(&NAMESPACES) | thread, thread)?);
    Ok(rules)
}

/// A rule for each value that the argument may have. The kernel takes the lower half of these arguments.
fn one_of(argument: u8, values: impl IntoIterator<Item = u64>) -> Result<Vec<SeccompRule>, BackendError> {
    let rule = |value| rule(argument, SeccompCmpOp::Eq, value);
    values.into_iter().map(rule).collect()
}

/// The bits of `mask` are as in `value`.
fn masked(argument: u8, mask: u64, value: u64) -> Result<Vec<SeccompRule>, BackendError> {
    Ok(vec![rule(argument, SeccompCmpOp::MaskedEq(mask), value)?])
}

fn rule(argument: u8, operator: SeccompCmpOp, value: u64) -> Result<SeccompRule, BackendError> {
    SeccompRule::new(vec![SeccompCondition::new(argument, SeccompCmpArgLen::Dword, operator, value)?])
}

fn bits(number: &i32) -> u64 {
    number.cast_unsigned().into()
}
