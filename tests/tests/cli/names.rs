//! Names of things that there are not: refused before anything is assembled.

use super::XTASK;
use std::process::Command;

#[test]
fn unknown_names_are_refused_before_anything_is_assembled() {
    for (arguments, expected) in [
        (["check", "--against", "nosuch"], "git knows no commit nosuch: give HEAD, a branch, a tag or a hash"),
        (["sweep", "--kernel", "nosuch"], "for sm_80, sm_90a has nosuch in its name"),
        (["sweep", "--arch", "sm_75"], "there are no kernels for sm_75; the architectures are sm_80, "),
    ] {
        // No assembler is there to be asked.
        let result = Command::new(&*XTASK).args(arguments).envs([("PTXAS", "/"), ("NVDISASM", "/")]).output().unwrap();
        let stderr = String::from_utf8_lossy(&result.stderr);
        assert!(!result.status.success() && result.stdout.is_empty(), "{arguments:?} was taken");
        assert!(stderr.starts_with("error: ") && stderr.lines().count() == 1, "{arguments:?}: {stderr}");
        assert!(stderr.contains(expected), "{arguments:?}: {stderr}");
    }
}
