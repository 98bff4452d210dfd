//! System calls that are not let through end the process, whichever thread makes them.

use std::os::fd::{AsRawFd, IntoRawFd};
use std::os::unix::net::UnixStream;

use rustix::io::Errno;
use testkit::cases;
use xen_virtio::confine::{ALLOWED, OPENS_NOTHING, REFUSED};

use crate::harness::{End, attempt, call};

const ROOT: &std::ffi::CStr = c"/";

fn killed(number: i64, arguments: [usize; 6]) {
    assert_eq!(attempt(move || call(number, arguments)), End::Killed, "system call {number}");
}

fn path() -> usize {
    ROOT.as_ptr() as usize
}

#[test]
fn there_is_no_file_to_open_and_other_ways_to_open_one_are_the_end() {
    let here = libc::AT_FDCWD as usize;
    cases::each([c"/", c".", c"/proc/self/mem", c"/dev/xen/privcmd"], |name| {
        let name = name.as_ptr() as usize;
        let end = attempt(move || call(OPENS_NOTHING, [here, name, 0, 0, 0, 0]));
        assert_eq!(end, End::Refused(Errno::NOENT));
    });
    let others =
        [libc::SYS_openat2, libc::SYS_open_by_handle_at, libc::SYS_open_tree, libc::SYS_mknodat, libc::SYS_chdir];
    cases::each(others, |number| killed(number, [here, path(), 0, 0, 0, 0]));
}

#[test]
fn making_a_socket_is_the_end() {
    cases::each([libc::AF_UNIX, libc::AF_INET, libc::AF_INET6, libc::AF_NETLINK, libc::AF_PACKET], |family| {
        killed(libc::SYS_socket, [family as usize, libc::SOCK_DGRAM as usize, 0, 0, 0, 0]);
    });
    killed(libc::SYS_socketpair, [libc::AF_INET as usize, libc::SOCK_STREAM as usize, 0, 0, 0, 0]);
}

#[test]
fn connecting_a_socket_that_it_was_given_is_the_end() {
    let (socket, _other) = UnixStream::pair().unwrap();
    let socket = socket.as_raw_fd() as usize;
    cases::each([libc::SYS_connect, libc::SYS_bind, libc::SYS_listen, libc::SYS_setsockopt], |number| {
        killed(number, [socket, 0, 0, 0, 0, 0]);
    });
}

#[test]
fn running_a_program_is_the_end() {
    let here = libc::AT_FDCWD as usize;
    killed(libc::SYS_execve, [path(), 0, 0, 0, 0, 0]);
    killed(libc::SYS_execveat, [here, path(), 0, 0, 0, 0]);
}

#[test]
fn making_a_process_is_the_end() {
    let signal = libc::SIGCHLD as usize;
    let with_thread = (libc::CLONE_THREAD | libc::CLONE_SIGHAND | libc::CLONE_VM) as usize;
    let flags = [
        signal,
        signal | libc::CLONE_VM as usize,
        signal | libc::CLONE_NEWUSER as usize,
        with_thread | libc::CLONE_NEWUSER as usize,
        with_thread | libc::CLONE_NEWNS as usize,
    ];
    cases::each(flags, |flags| killed(libc::SYS_clone, [flags, 0, 0, 0, 0, 0]));
}

#[test]
fn another_root_mount_or_namespace_is_the_end() {
    let calls = [
        libc::SYS_mount,
        libc::SYS_umount2,
        libc::SYS_pivot_root,
        libc::SYS_chroot,
        libc::SYS_unshare,
        libc::SYS_setns,
        libc::SYS_fsopen,
        libc::SYS_open_tree,
        libc::SYS_move_mount,
    ];
    cases::each(calls, |number| killed(number, [path(), path(), path(), 0, 0, 0]));
}

#[test]
fn another_user_group_or_capability_is_the_end() {
    let calls = [
        libc::SYS_setuid,
        libc::SYS_setresuid,
        libc::SYS_setgid,
        libc::SYS_setresgid,
        libc::SYS_setgroups,
        libc::SYS_capset,
        libc::SYS_prlimit64,
        libc::SYS_personality,
    ];
    cases::each(calls, |number| killed(number, [0; 6]));
}

#[test]
fn reaching_into_another_process_is_the_end() {
    let parent = std::process::id() as usize;
    let calls = [
        libc::SYS_kill,
        libc::SYS_tkill,
        libc::SYS_rt_sigqueueinfo,
        libc::SYS_pidfd_open,
        libc::SYS_pidfd_getfd,
        libc::SYS_pidfd_send_signal,
        libc::SYS_process_vm_readv,
        libc::SYS_process_vm_writev,
    ];
    cases::each(calls, |number| killed(number, [parent, 0, 0, 0, 0, 0]));
    cases::each([libc::PTRACE_ATTACH, libc::PTRACE_SEIZE], |request| {
        killed(libc::SYS_ptrace, [request as usize, parent, 0, 0, 0, 0]);
    });
    killed(libc::SYS_tgkill, [parent, parent, 0, 0, 0, 0]);
    killed(libc::SYS_kill, [usize::MAX, libc::SIGKILL as usize, 0, 0, 0, 0]);
}

#[test]
fn what_is_the_kernels_own_is_the_end() {
    let calls = [
        libc::SYS_bpf,
        libc::SYS_perf_event_open,
        libc::SYS_userfaultfd,
        libc::SYS_keyctl,
        libc::SYS_add_key,
        libc::SYS_init_module,
        libc::SYS_finit_module,
        libc::SYS_kexec_load,
        libc::SYS_reboot,
        libc::SYS_sethostname,
        libc::SYS_clock_settime,
        libc::SYS_swapon,
        libc::SYS_quotactl,
        libc::SYS_msgget,
        libc::SYS_shmget,
        libc::SYS_seccomp,
    ];
    cases::each(calls, |number| killed(number, [0; 6]));
}

#[test]
fn memory_that_can_be_run_is_the_end() {
    let (anonymous, readable) = ((libc::MAP_PRIVATE | libc::MAP_ANONYMOUS) as usize, libc::PROT_READ);
    let runnable = (readable | libc::PROT_EXEC) as usize;
    killed(libc::SYS_mmap, [0, 4096, runnable, anonymous, usize::MAX, 0]);
    killed(libc::SYS_mprotect, [0, 4096, runnable, 0, 0, 0]);
    killed(libc::SYS_pkey_mprotect, [0, 4096, runnable, 0, 0, 0]);
    // The same is let through where nothing would be run.
    assert_eq!(
        attempt(move || call(libc::SYS_mmap, [0, 4096, readable as usize, anonymous, usize::MAX, 0])),
        End::Done
    );
}

#[test]
fn of_requests_to_devices_only_those_that_serving_takes_come_through() {
    let null = std::fs::File::open("/dev/null").unwrap().into_raw_fd() as usize;
    let hypercall = 0x0030_5000;
    let restrict_privcmd = 0x0002_5006;
    let (bind_virq, bind_unbound) = (0x0004_4500, 0x0004_4502);
    let others = [
        hypercall,
        restrict_privcmd,
        bind_virq,
        bind_unbound,
        libc::TIOCSTI as usize,
        libc::TUNSETIFF as usize,
        libc::TUNSETOWNER as usize,
        libc::TCSETS as usize,
        libc::FIOASYNC as usize,
    ];
    cases::each(others, |request| killed(libc::SYS_ioctl, [null, request, 0, 0, 0, 0]));
    cases::each([libc::F_SETOWN, libc::F_SETLEASE, libc::F_NOTIFY, libc::F_SETPIPE_SZ], |command| {
        killed(libc::SYS_fcntl, [null, command as usize, 0, 0, 0, 0]);
    });
    cases::each([libc::PR_SET_DUMPABLE, libc::PR_SET_SECCOMP, libc::PR_SET_KEEPCAPS, libc::PR_SET_MM], |operation| {
        killed(libc::SYS_prctl, [operation as usize, 1, 0, 0, 0, 0]);
    });
    let told =
        attempt(move || call(libc::SYS_ioctl, [null, xen_ioctls::abi::linux_privcmd::DM_OP as usize, 0, 0, 0, 0]));
    assert_eq!(told, End::Refused(Errno::NOTTY), "it is for the device to answer");
}

#[test]
fn what_libraries_can_do_without_is_not_there() {
    cases::each(REFUSED, |number| {
        let number = *number;
        assert_eq!(attempt(move || call(number, [0; 6])), End::Refused(Errno::NOSYS), "system call {number}");
    });
}

#[test]
fn the_lists_are_short_and_name_nothing_twice() {
    let mut all = [ALLOWED, REFUSED, &[OPENS_NOTHING]].concat();
    all.sort_unstable();
    all.dedup();
    assert_eq!(all.len(), ALLOWED.len() + REFUSED.len() + 1);
}
