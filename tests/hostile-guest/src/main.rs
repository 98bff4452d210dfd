//! `hostile-guest WINDOW`: makes every move that fits the device whose registers are at this guest address (hexadecimal). Says of
//! each whether it went as it should; the last line counts them.

use std::process::ExitCode;

use hostile_guest::devmem::DevMem;
use hostile_guest::driver::Driver;
use hostile_guest::moves;

fn main() -> ExitCode {
    let mut words = std::env::args().skip(1);
    let window = words.next().and_then(|word| u64::from_str_radix(word.trim_start_matches("0x"), 16).ok());
    let outcome = match (window, words.next()) {
        (None, _) => Err("Say where the device's registers are: hostile-guest 0x2000000".to_owned()),
        (Some(window), None) => make_all(window),
        (Some(window), Some(number)) => make_awkward(window, &number),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}

fn make_all(window: u64) -> Result<(), String> {
    let machine = DevMem::new(window).map_err(|error| format!("The device cannot be reached: {error}"))?;
    let driver = Driver::new(&machine);
    let (mut made, mut failed) = (0, 0);
    let mut note = |row, name: &str, outcome: Result<(), String>| {
        made += 1;
        match outcome {
            Ok(()) => println!("ok {row} {name}"),
            Err(error) => {
                failed += 1;
                println!("FAIL {row} {name}: {error}");
            }
        }
    };
    for hostile in moves::all(driver.device) {
        note(hostile.row, &hostile.name, hostile.make(&driver));
    }
    #[cfg(target_arch = "aarch64")]
    for (name, outcome) in hostile_guest::awkward::do_all(&driver, window) {
        note("A22", name, outcome);
    }
    println!("device {}: {made} moves, {failed} failed", driver.device);
    if failed == 0 { Ok(()) } else { Err("The device did not take them all as it should".to_owned()) }
}

/// What [`make_all`] has another process do.
#[cfg(target_arch = "aarch64")]
fn make_awkward(window: u64, number: &str) -> Result<(), String> {
    let number = number.parse().map_err(|error| format!("{number}: {error}"))?;
    hostile_guest::awkward::do_one(window, number)
}

#[cfg(not(target_arch = "aarch64"))]
fn make_awkward(_window: u64, _number: &str) -> Result<(), String> {
    Err("These are instructions of another processor".to_owned())
}
