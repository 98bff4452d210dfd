//! A process that is made to run a system call, by ptrace(2).

use std::fs::{self, File};
use std::os::unix::fs::FileExt;

use anyhow::{Context, Result, bail};
use nix::errno::Errno;
use nix::sys::ptrace::{self, Options};
use nix::sys::signal::Signal;
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::Pid;

use registers::{INSTRUCTION, Registers};

/// What came of a system call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It was made, and returned this.
    Returned(i64),
    /// The kernel said no.
    Refused(Errno),
    /// The process was killed by this signal.
    Killed(Signal),
}

/// A process whose first thread stands still in our hands. It goes on where it was as soon as this is dropped.
pub struct Borrowed {
    process: Pid,
    memory: File,
    former: Registers,
}

impl Borrowed {
    /// Stops the first thread of process `id`, wherever it is.
    ///
    /// # Errors
    /// There is none, or this process may not trace it.
    pub fn take(id: i32) -> Result<Self> {
        let process = Pid::from_raw(id);
        let memory = File::options()
            .read(true)
            .write(true)
            .open(format!("/proc/{id}/mem"))
            .with_context(|| format!("Cannot open the memory of process {id}"))?;
        ptrace::seize(process, Options::empty()).with_context(|| format!("Cannot trace process {id}"))?;
        ptrace::interrupt(process)?;
        waitpid(process, None)?;
        let former = Registers::of(process)?;
        Ok(Self { process, memory, former })
    }

    /// Puts bytes into memory that the thread does not use: below its stack. Returns where.
    ///
    /// # Errors
    /// There is none.
    pub fn place(&self, bytes: &[u8]) -> Result<u64> {
        let address = (self.former.stack() - 2048) & !15;
        self.memory.write_all_at(bytes, address).context("Cannot write below the stack")?;
        Ok(address)
    }

    /// The number of the descriptor by which the process has the file of this name open.
    ///
    /// # Errors
    /// It has not.
    pub fn descriptor(&self, name: &str) -> Result<u64> {
        for entry in fs::read_dir(format!("/proc/{}/fd", self.process))? {
            let entry = entry?;
            if fs::read_link(entry.path()).is_ok_and(|target| target.to_string_lossy() == name)
                && let Some(number) = entry.file_name().to_str().and_then(|number| number.parse().ok())
            {
                return Ok(number);
            }
        }
        bail!("Process {} does not have {name} open", self.process)
    }

    /// Has the thread make a system call.
    ///
    /// # Errors
    /// It does not come to an end.
    pub fn call(&self, number: i64, arguments: [u64; 6]) -> Result<Outcome> {
        self.former.calling(self.instruction()?, number, arguments).give(self.process)?;
        ptrace::step(self.process, None)?;
        match waitpid(self.process, None)? {
            WaitStatus::Stopped(..) => {
                let result = Registers::of(self.process)?.result();
                // As the kernel tells errors from results.
                let errno = i32::try_from(result.wrapping_neg()).ok().filter(|errno| (1..4096).contains(errno));
                Ok(errno.map_or(Outcome::Returned(result), |errno| Outcome::Refused(Errno::from_raw(errno))))
            }
            WaitStatus::Signaled(_, signal, _) => Ok(Outcome::Killed(signal)),
            status => bail!("After the system call the process is {status:?}"),
        }
    }

    /// Where in the program there is an instruction that makes a system call.
    fn instruction(&self) -> Result<u64> {
        let maps = fs::read_to_string(format!("/proc/{}/maps", self.process))?;
        for line in maps.lines().filter(|line| line.contains(" r-xp ")) {
            let range = line.split(' ').next().and_then(|range| range.split_once('-'));
            let (start, end) = range.context("A line of maps begins with a range")?;
            let (start, end) = (u64::from_str_radix(start, 16)?, u64::from_str_radix(end, 16)?);
            let mut code = vec![0; usize::try_from(end - start)?];
            if self.memory.read_exact_at(&mut code, start).is_err() {
                continue;
            }
            let found = code.windows(INSTRUCTION.len()).step_by(INSTRUCTION.len()).position(|word| word == INSTRUCTION);
            if let Some(index) = found {
                return Ok(start + (index * INSTRUCTION.len()) as u64);
            }
        }
        bail!("There is no system call in the program of process {}", self.process)
    }
}

impl Drop for Borrowed {
    fn drop(&mut self) {
        // All fail if the process has been killed.
        let _ = self.former.give(self.process);
        let _ = ptrace::detach(self.process, None);
    }
}

#[cfg(target_arch = "aarch64")]
mod registers {
    use anyhow::Result;
    use nix::sys::ptrace::{self, regset::NT_PRSTATUS};
    use nix::unistd::Pid;

    /// svc #0
    pub(super) const INSTRUCTION: [u8; 4] = [0x01, 0x00, 0x00, 0xd4];

    /// A thread's. If it was stopped in a system call, the kernel has them so that the call is made again.
    #[derive(Clone, Copy)]
    pub(super) struct Registers(libc::user_regs_struct);

    impl Registers {
        pub(super) fn of(thread: Pid) -> Result<Self> {
            Ok(Self(ptrace::getregset::<NT_PRSTATUS>(thread)?))
        }

        pub(super) fn give(&self, thread: Pid) -> Result<()> {
            Ok(ptrace::setregset::<NT_PRSTATUS>(thread, self.0)?)
        }

        pub(super) fn stack(&self) -> u64 {
            self.0.sp
        }

        pub(super) fn result(&self) -> i64 {
            let [result, ..] = self.0.regs;
            result.cast_signed()
        }

        pub(super) fn calling(mut self, instruction: u64, number: i64, arguments: [u64; 6]) -> Self {
            let [x0, x1, x2, x3, x4, x5, _, _, x8, ..] = &mut self.0.regs;
            for (register, argument) in [x0, x1, x2, x3, x4, x5].into_iter().zip(arguments) {
                *register = argument;
            }
            *x8 = number.cast_unsigned();
            self.0.pc = instruction;
            self
        }
    }
}

#[cfg(target_arch = "x86_64")]
mod registers {
    use anyhow::Result;
    use nix::sys::ptrace::{self, regset::NT_PRSTATUS};
    use nix::unistd::Pid;

    /// syscall
    pub(super) const INSTRUCTION: [u8; 2] = [0x0f, 0x05];

    /// What the kernel has as a result of a system call that is to be made again (include/linux/errno.h).
    const RESTARTS: [i64; 4] = [-512, -513, -514, -516];

    /// A thread's. If it was stopped in a system call, they are so that the call is made again.
    #[derive(Clone, Copy)]
    pub(super) struct Registers(libc::user_regs_struct);

    impl Registers {
        pub(super) fn of(thread: Pid) -> Result<Self> {
            let mut registers = ptrace::getregset::<NT_PRSTATUS>(thread)?;
            if registers.orig_rax.cast_signed() >= 0 && RESTARTS.contains(&registers.rax.cast_signed()) {
                registers.rax = registers.orig_rax;
                registers.rip -= INSTRUCTION.len() as u64;
            }
            registers.orig_rax = u64::MAX;
            Ok(Self(registers))
        }

        pub(super) fn give(&self, thread: Pid) -> Result<()> {
            Ok(ptrace::setregset::<NT_PRSTATUS>(thread, self.0)?)
        }

        pub(super) fn stack(&self) -> u64 {
            self.0.rsp
        }

        pub(super) fn result(&self) -> i64 {
            self.0.rax.cast_signed()
        }

        pub(super) fn calling(mut self, instruction: u64, number: i64, arguments: [u64; 6]) -> Self {
            let registers = &mut self.0;
            [registers.rdi, registers.rsi, registers.rdx, registers.r10, registers.r8, registers.r9] = arguments;
            registers.rax = number.cast_unsigned();
            registers.rip = instruction;
            self
        }
    }
}
