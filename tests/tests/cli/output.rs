//! Where the output goes: nothing that was there is lost, nothing half-done is left.

use super::*;
use std::ffi::OsStr;
use std::fs;
use std::io::Read;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt, symlink};
use std::process::Stdio;

/// A folder with an input.
fn with_input(name: &str) -> (Folder, PathBuf) {
    let folder = Folder::new(name);
    let input = folder.file("in");
    fs::write(&input, encode(&good([1, 2, 4, 32]))).expect("the input is written");
    (folder, input)
}

fn names(folder: &Folder) -> Vec<std::ffi::OsString> {
    let mut names: Vec<_> =
        fs::read_dir(&folder.0).expect("the folder").map(|entry| entry.expect("an entry").file_name()).collect();
    names.sort();
    names
}

fn stderr(result: &Output) -> String {
    String::from_utf8_lossy(&result.stderr).into_owned()
}

#[track_caller]
fn is_output(bytes: &[u8]) {
    let file = SafeTensors::deserialize(bytes).expect("a whole file");
    assert_eq!(file.tensor("o").expect("o").shape(), [1, 2, 4, 32]);
}

/// A line for the shell around the command; the words after it are `$1`, `$2`, ...
fn shell(line: &str, words: &[&OsStr]) -> Command {
    let mut command = Command::new("sh");
    command.arg("-c").arg(line).arg("sh").arg(&*XTASK).args(words);
    command
}

#[test]
fn a_symlink_stays_and_its_target_is_written() {
    let (folder, input) = with_input("symlink");
    fs::write(folder.file("real"), "old").expect("a file");
    for (link, to) in [("link", "real"), ("link-of-link", "link"), ("dangling", "new")] {
        symlink(to, folder.file(link)).expect("a link");
        let result = run(&input, &folder.file(link), &[]);
        assert!(result.status.success(), "{}", stderr(&result));
        assert_eq!(fs::read_link(folder.file(link)).expect("still a link"), Path::new(to));
        is_output(&fs::read(folder.file(link)).expect("an output"));
        fs::write(folder.file("real"), "old").expect("a file");
    }
    is_output(&fs::read(folder.file("new")).expect("an output"));
    symlink("circle", folder.file("circle")).expect("a link");
    let result = run(&input, &folder.file("circle"), &[]);
    assert!(!result.status.success() && stderr(&result).contains("cannot write"), "{}", stderr(&result));
}

#[test]
fn a_file_keeps_its_mode_and_a_new_one_has_the_usual() {
    let (folder, input) = with_input("mode");
    fs::write(folder.file("out"), "old").expect("a file");
    for mode in [0o600, 0o644, 0o666, 0o755] {
        fs::set_permissions(folder.file("out"), fs::Permissions::from_mode(mode)).expect("its mode");
        assert!(run(&input, &folder.file("out"), &[]).status.success());
        assert_eq!(fs::metadata(folder.file("out")).expect("a file").mode() & 0o7777, mode);
    }
    is_output(&fs::read(folder.file("out")).expect("an output"));
    let line = r#"umask 027; exec "$1" attention --device cpu --input "$2" --output "$3""#;
    let result = shell(line, &[input.as_os_str(), folder.file("new").as_os_str()]).output().expect("sh starts");
    assert!(result.status.success(), "{}", stderr(&result));
    assert_eq!(fs::metadata(folder.file("new")).expect("a file").mode() & 0o7777, 0o640);
    assert_eq!(names(&folder), ["in", "new", "out"]);
}

/// Files that flags name are inputs too.
#[test]
fn files_of_numbers_are_not_overwritten() {
    let (folder, input) = with_input("numbers");
    symlink("sinks", folder.file("link")).expect("a link");
    for (flag, name) in [("--sinks", "sinks"), ("--alibi", "slopes")] {
        fs::write(folder.file(name), "0.5 0.25").expect("a file");
        let path = folder.file(name);
        let more = [flag, path.to_str().expect("a name")];
        for target in if flag == "--sinks" { &["sinks", "link"][..] } else { &["slopes"] } {
            let result = run(&input, &folder.file(target), &more);
            let said = stderr(&result);
            assert!(!result.status.success() && said.contains("is the input"), "{flag} {target}: {said}");
            assert_eq!(fs::read_to_string(&path).expect("still there"), "0.5 0.25");
        }
        assert!(run(&input, &folder.file("out"), &more).status.success());
    }
    is_output(&fs::read(folder.file("out")).expect("an output"));
}

#[test]
fn devices_and_fifos_are_written_through() {
    let (folder, input) = with_input("devices");
    // A link to a device, as `/dev/stdout` is one; renamed over, it would not be a link any more.
    symlink("/dev/null", folder.file("null")).expect("a link");
    assert!(run(&input, &folder.file("null"), &[]).status.success());
    assert!(fs::metadata(folder.file("null")).expect("a device").file_type().is_char_device());
    symlink("/dev/full", folder.file("full")).expect("a link");
    let full = run(&input, &folder.file("full"), &[]);
    assert!(!full.status.success() && stderr(&full).contains("No space left"), "{}", stderr(&full));

    let fifo = folder.file("fifo");
    assert!(Command::new("mkfifo").arg(&fifo).status().expect("mkfifo starts").success());
    let reader = std::thread::spawn({
        let fifo = fifo.clone();
        // Read and write, so that the opening does not wait for a writer that never comes.
        move || {
            let mut file = fs::OpenOptions::new().read(true).write(true).open(fifo).expect("a FIFO");
            let mut bytes = vec![0; 8];
            file.read_exact(&mut bytes).expect("a header's length");
            let header = u64::from_le_bytes(bytes[..].try_into().expect("eight bytes"));
            bytes.resize(8 + header as usize + 512, 0);
            file.read_exact(&mut bytes[8..]).expect("the rest");
            bytes
        }
    });
    let result = run(&input, &fifo, &[]);
    assert!(result.status.success(), "{}", stderr(&result));
    assert!(fs::metadata(&fifo).expect("the FIFO").file_type().is_fifo());
    is_output(&reader.join().expect("the reader"));
    assert_eq!(names(&folder), ["fifo", "full", "in", "null"]);
}

#[test]
fn stdout_is_an_output() {
    let (folder, input) = with_input("stdout");
    // By a link, so that a program which renames over it does not cost the machine its /dev/stdout.
    symlink("/dev/stdout", folder.file("link")).expect("a link");
    let start = |line: &str, name: &str| {
        let mut command = shell(line, &[input.as_os_str(), OsStr::new(name)]);
        command.current_dir(&folder.0).output().expect("sh starts")
    };
    let line = r#"exec "$1" attention --device cpu --input "$2" --output "$3""#;
    for name in ["-", "link"] {
        let result = start(line, name);
        assert!(result.status.success(), "{}", stderr(&result));
        is_output(&result.stdout);
        assert!(stderr(&result).contains("wrote"), "the report goes to stderr");
    }
    // A file that stdout is already: no second writer from its beginning.
    for name in ["-", "link", "out"] {
        let result = start(&format!("{line} --json > out"), name);
        assert!(result.status.success(), "{}", stderr(&result));
        is_output(&fs::read(folder.file("out")).expect("an output"));
        serde_json::from_slice::<Value>(&result.stderr).expect("the report");
    }
    assert_eq!(names(&folder), ["in", "link", "out"]);
}

#[test]
fn the_input_is_not_overwritten() {
    let (folder, input) = with_input("same");
    let before = fs::read(&input).expect("the input");
    symlink("in", folder.file("link")).expect("a link");
    fs::hard_link(&input, folder.file("hard")).expect("a link");
    for (input, output) in [("in", "in"), ("in", "link"), ("link", "in"), ("in", "hard"), ("in", "./in")] {
        let result = run(&folder.file(input), &folder.0.join(output), &[]);
        assert!(!result.status.success() && stderr(&result).contains("is the input"), "{output}: {}", stderr(&result));
    }
    assert_eq!(fs::read(&input).expect("the input"), before);
    assert_eq!(names(&folder), ["hard", "in", "link"]);
}

#[test]
fn long_names_work() {
    let (folder, input) = with_input("long");
    for length in [239, 240, 255] {
        let name = "n".repeat(length);
        let result = run(&input, &folder.file(&name), &[]);
        assert!(result.status.success(), "{length}: {}", stderr(&result));
        // and again, over what is there now
        assert!(run(&input, &folder.file(&name), &[]).status.success());
        is_output(&fs::read(folder.file(&name)).expect("an output"));
        fs::remove_file(folder.file(&name)).expect("it goes");
    }
    let result = run(&input, &folder.file(&"n".repeat(256)), &[]);
    assert!(!result.status.success() && stderr(&result).contains("cannot write"), "{}", stderr(&result));
    assert_eq!(names(&folder), ["in"]);
}

/// A file that may not grow kills its writer in the middle.
#[test]
fn a_killed_writer_leaves_nothing() {
    let (folder, input) = with_input("kill");
    fs::write(&input, encode(&good([1, 8, 64, 64]))).expect("the input is written");
    fs::write(folder.file("old"), "old").expect("a file");
    for name in ["new", "old"] {
        let line = r#"ulimit -c 0; ulimit -f 8; exec "$1" attention --device cpu --input "$2" --output "$3""#;
        let result = shell(line, &[input.as_os_str(), folder.file(name).as_os_str()]).output().expect("sh starts");
        assert!(!result.status.success());
    }
    assert_eq!(fs::read(folder.file("old")).expect("the old file"), b"old");
    assert_eq!(names(&folder), ["in", "old"]);
}

/// On a file system without nameless files a kill leaves a name; the next writer removes it, and no file of a living one.
#[test]
fn the_next_writer_removes_what_a_kill_left() {
    let (folder, input) = with_input("sweep");
    fs::write(folder.file(".int-flash-1-0.part"), "half").expect("a file");
    fs::write(folder.file(".int-flash-own.txt"), "mine").expect("a file");
    let living = fs::File::create(folder.file(".int-flash-2-0.part")).expect("a file");
    living.try_lock().expect("a lock");
    assert!(run(&input, &folder.file("out"), &[]).status.success());
    assert_eq!(names(&folder), [".int-flash-2-0.part", ".int-flash-own.txt", "in", "out"]);
}

#[test]
fn a_stdout_that_takes_nothing_is_no_panic() {
    let (folder, input) = with_input("full");
    let start = |stdout: Stdio| {
        let mut command = Command::new(&*XTASK);
        command.args(["attention", "--device", "cpu", "--json", "--input"]).arg(&input).arg("--output");
        command.arg(folder.file("out")).stdout(stdout).stderr(Stdio::piped()).spawn().expect("it starts")
    };
    let full = fs::OpenOptions::new().write(true).open("/dev/full").expect("a device");
    let result = start(full.into()).wait_with_output().expect("it ends");
    assert_eq!(result.status.code(), Some(1));
    assert!(stderr(&result).starts_with("error: cannot write to stdout"), "{}", stderr(&result));
    is_output(&fs::read(folder.file("out")).expect("an output"));

    // A reader who has gone: silence, and what a shell says of a program that SIGPIPE ended.
    let (reader, writer) = std::io::pipe().expect("a pipe");
    drop(reader);
    let result = start(writer.into()).wait_with_output().expect("it ends");
    assert_eq!((result.status.code(), stderr(&result).as_str()), (Some(141), ""));

    let line = r#"exec "$1" attention --device cpu --json --input "$2" --output "$3" >&-"#;
    let closed = shell(line, &[input.as_os_str(), folder.file("out").as_os_str()]).output().expect("sh starts");
    assert!(closed.status.success(), "{}", stderr(&closed));

    let (reader, writer) = std::io::pipe().expect("a pipe");
    drop(reader);
    let mut command = Command::new(&*XTASK);
    command.args(["attention", "--device", "cpu", "--output", "-", "--input"]).arg(&input).stdout(writer);
    let result = command.output().expect("it starts");
    assert_eq!(result.status.code(), Some(1), "the tensors are lost, which is an error");
    assert!(stderr(&result).starts_with("error: cannot write to stdout"), "{}", stderr(&result));
}
