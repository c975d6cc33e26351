//! `println!` and `eprintln!` that do not panic, in place of the standard library's in every module of this program.

use std::fmt::Arguments;
use std::io::{ErrorKind, Write, stderr, stdout};
use std::process::exit;

/// What a shell says of a program that SIGPIPE ended.
const PIPE_CLOSED: i32 = 128 + 13;

macro_rules! println {
    () => { $crate::stdout::line(format_args!("")) };
    ($($text:tt)*) => { $crate::stdout::line(format_args!($($text)*)) };
}

macro_rules! eprintln {
    ($($text:tt)*) => { $crate::stdout::note(format_args!($($text)*)) };
}

/// A line to stdout. A reader who went away ends the program in silence, as it ends every other; a full disk is an error.
pub fn line(text: Arguments<'_>) {
    let Err(error) = writeln!(stdout().lock(), "{text}") else { return };
    if error.kind() == ErrorKind::BrokenPipe {
        exit(PIPE_CLOSED);
    }
    note(format_args!("error: cannot write to stdout: {error}"));
    exit(1);
}

/// A line to stderr; there is nobody to tell where that fails.
pub fn note(text: Arguments<'_>) {
    let _ = writeln!(stderr().lock(), "{text}");
}
