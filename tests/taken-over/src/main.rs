//! `taken-over PROCESS ATTEMPT` has a live worker try something, prints what came of it, and fails if that is not how it is to be
//! denied. `taken-over` alone prints the names of all attempts.

use std::env;

use anyhow::{Context, Result, bail};
use taken_over::{ATTEMPTS, Borrowed};

fn main() -> Result<()> {
    let arguments: Vec<String> = env::args().skip(1).collect();
    match arguments.as_slice() {
        [] => {
            for attempt in ATTEMPTS {
                println!("{}", attempt.name);
            }
            Ok(())
        }
        [process, name] => {
            let attempt = ATTEMPTS.iter().find(|attempt| attempt.name == name).context("There is no such attempt")?;
            let outcome = attempt.by(&Borrowed::take(process.parse().context("No process id")?)?)?;
            println!("{name}: {outcome}");
            if !attempt.denial.is(outcome) {
                bail!("This was to be {:?}", attempt.denial);
            }
            Ok(())
        }
        _ => bail!("usage: taken-over [PROCESS ATTEMPT]"),
    }
}
