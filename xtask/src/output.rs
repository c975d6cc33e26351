//! Files that a command writes: whole or not at all, and nothing lost that was there before.

use anyhow::{Context, Result, bail};
use rustix::fs::{AtFlags, CWD, FlockOperation, Mode, OFlags};
use std::fs::{self, File, Metadata, OpenOptions};
use std::io::{self, ErrorKind, Write};
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt, fchown};
use std::path::{Path, PathBuf};

/// What the names of files that are not whole yet begin and end with. Nothing of the target's name is in them, so that a target
/// may have a name as long as the file system allows.
const PART: (&str, &str) = (".int-flash-", ".part");

/// Where an output goes, looked at before the work begins; nothing is made or changed until [`Target::write`].
pub struct Target {
    path: PathBuf,
    kind: Kind,
    /// What is there already, links followed.
    old: Option<Metadata>,
}

enum Kind {
    /// The program's own: `-`, or a path that leads to the same file.
    Stdout,
    /// A device, a FIFO, a file that has no path: written through.
    Through,
    /// A regular file, or none yet, at the end of all links: replaced in one step.
    Regular(PathBuf),
}

impl Target {
    /// What `path` leads to.
    pub fn of(path: &Path) -> Result<Self> {
        Self::look(path).with_context(|| format!("cannot write {}", path.display()))
    }

    fn look(path: &Path) -> Result<Self> {
        let target = |kind, old| Ok(Self { path: path.to_owned(), kind, old });
        if path == Path::new("-") {
            return target(Kind::Stdout, fs::metadata("/dev/stdout").ok());
        }
        let old = match fs::metadata(path) {
            Ok(old) => old,
            Err(error) if error.kind() == ErrorKind::NotFound => {
                let end = follow(path)?;
                end.file_name().context("it names no file")?;
                fs::metadata(folder_of(&end))?;
                return target(Kind::Regular(end), None);
            }
            Err(error) => return Err(error.into()),
        };
        if old.is_dir() {
            bail!("it is a folder");
        }
        let seekable = |file: &Metadata| file.is_file() || file.file_type().is_fifo();
        // A second opening of what stdout is would have an offset of its own, and the report would land on the tensors.
        if seekable(&old) && fs::metadata("/dev/stdout").is_ok_and(|stdout| same(&stdout, &old)) {
            return target(Kind::Stdout, Some(old));
        }
        // The kernel's links in /proc lead to files that may have no path any more.
        let end = fs::canonicalize(path).ok().filter(|end| fs::metadata(end).is_ok_and(|found| same(&found, &old)));
        match end {
            Some(end) if old.is_file() => {
                OpenOptions::new().write(true).open(&end)?;
                target(Kind::Regular(end), Some(old))
            }
            _ => target(Kind::Through, Some(old)),
        }
    }

    /// Whether the output goes to stdout, where nothing else may go then.
    pub fn is_stdout(&self) -> bool {
        matches!(self.kind, Kind::Stdout)
    }

    /// Refuses a target that is the input, by whatever path.
    pub fn refuse_input(&self, input: &Path) -> Result<()> {
        let kept = |file: &Metadata| file.is_file() || file.file_type().is_block_device();
        if let (Some(old), Ok(input)) = (&self.old, fs::metadata(input))
            && kept(old)
            && same(old, &input)
        {
            bail!("the output {} is the input; it would be overwritten", self.path.display());
        }
        Ok(())
    }

    /// Writes the parts one after the other.
    pub fn write(&self, parts: &[&[u8]]) -> Result<()> {
        let written = match &self.kind {
            Kind::Stdout => {
                let mut stdout = io::stdout().lock();
                return write_all(&mut stdout, parts).and_then(|()| stdout.flush()).context("cannot write to stdout");
            }
            Kind::Through => in_place(&self.path, parts),
            Kind::Regular(end) => replace(end, self.old.as_ref(), parts),
        };
        written.with_context(|| format!("cannot write {}", self.path.display()))
    }
}

/// Writes `bytes` where `path` leads, so that a reader or a crash never sees half a file.
pub fn write_atomically(path: &Path, bytes: &[u8]) -> Result<()> {
    Target::of(path)?.write(&[bytes])
}

fn same(a: &Metadata, b: &Metadata) -> bool {
    (a.dev(), a.ino()) == (b.dev(), b.ino())
}

/// Where links that end nowhere yet lead.
fn follow(path: &Path) -> io::Result<PathBuf> {
    let mut path = path.to_owned();
    // The kernel's own limit; `metadata` has refused longer chains and circles.
    for _ in 0..40 {
        match fs::read_link(&path) {
            Ok(to) => path = folder_of(&path).join(to),
            Err(_) => break,
        }
    }
    Ok(path)
}

fn folder_of(path: &Path) -> &Path {
    path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

fn write_all(to: &mut impl Write, parts: &[&[u8]]) -> io::Result<()> {
    parts.iter().try_for_each(|part| to.write_all(part))
}

fn in_place(path: &Path, parts: &[&[u8]]) -> io::Result<()> {
    let mut file = OpenOptions::new().write(true).truncate(true).open(path)?;
    write_all(&mut file, parts)?;
    match file.sync_all() {
        // what FIFOs and most devices say
        Err(error) if error.kind() == ErrorKind::InvalidInput => Ok(()),
        synced => synced,
    }
}

/// Puts a new file in the place of `end`, with the mode and owner of the old one.
fn replace(end: &Path, old: Option<&Metadata>, parts: &[&[u8]]) -> io::Result<()> {
    let folder = folder_of(end);
    sweep(folder);
    let whole = |part: io::Result<Part>| -> io::Result<()> {
        let mut part = part?;
        write_all(&mut part.file, parts)?;
        if let Some(old) = old {
            keep_mode(&part.file, old)?;
        }
        part.file.sync_all()?;
        part.publish(end)
    };
    match whole(Part::nameless(folder)).or_else(|_| whole(Part::named(folder))) {
        // The folder takes no new file, or the file is a mount point: the file itself can still be written.
        Err(error)
            if old.is_some()
                && matches!(
                    error.kind(),
                    ErrorKind::PermissionDenied | ErrorKind::ReadOnlyFilesystem | ErrorKind::ResourceBusy
                ) =>
        {
            in_place(end, parts)
        }
        Err(error) => Err(error),
        Ok(()) => {
            // Without this the name may not outlive a power failure. Not every file system can.
            let _ = File::open(folder).and_then(|folder| folder.sync_all());
            Ok(())
        }
    }
}

fn keep_mode(file: &File, old: &Metadata) -> io::Result<()> {
    let new = file.metadata()?;
    let owned =
        (new.uid(), new.gid()) == (old.uid(), old.gid()) || fchown(file, Some(old.uid()), Some(old.gid())).is_ok();
    // Set-user-ID bits are the old owner's to give.
    let mode = old.mode() & if owned { 0o7777 } else { 0o777 };
    file.set_permissions(fs::Permissions::from_mode(mode))
}

/// A file on its way. It is locked as long as its writer lives, so that [`sweep`] knows what a kill left behind.
struct Part {
    file: File,
    name: Option<PathBuf>,
}

impl Part {
    /// Without a name: a kill leaves nothing.
    fn nameless(folder: &Path) -> io::Result<Self> {
        let flags = OFlags::TMPFILE | OFlags::WRONLY | OFlags::CLOEXEC;
        let file = File::from(rustix::fs::open(folder, flags, Mode::from_raw_mode(0o666))?);
        rustix::fs::flock(file.as_fd(), FlockOperation::NonBlockingLockExclusive)?;
        Ok(Self { file, name: None })
    }

    /// For file systems that know no such files.
    fn named(folder: &Path) -> io::Result<Self> {
        let (file, name) = fresh(folder, |name| OpenOptions::new().write(true).create_new(true).open(name))?;
        let part = Self { file, name: Some(name) };
        // A file system without locks has no sweep either.
        let _ = rustix::fs::flock(part.file.as_fd(), FlockOperation::NonBlockingLockExclusive);
        Ok(part)
    }

    /// Gives it the name `end`, whatever had it before.
    fn publish(mut self, end: &Path) -> io::Result<()> {
        if self.name.is_none() {
            let file = format!("/proc/self/fd/{}", self.file.as_raw_fd());
            let link = |to: &Path| Ok(rustix::fs::linkat(CWD, file.as_str(), CWD, to, AtFlags::SYMLINK_FOLLOW)?);
            match link(end) {
                // A link takes nobody's place; a rename does.
                Err(error) if io::Error::kind(&error) == ErrorKind::AlreadyExists => {
                    self.name = Some(fresh(folder_of(end), link)?.1);
                }
                linked => return linked,
            }
        }
        if let Some(name) = &self.name {
            fs::rename(name, end)?;
            self.name = None;
        }
        Ok(())
    }
}

impl Drop for Part {
    fn drop(&mut self) {
        if let Some(name) = &self.name {
            let _ = fs::remove_file(name);
        }
    }
}

/// Makes something under a name that nothing has.
fn fresh<T>(folder: &Path, make: impl Fn(&Path) -> io::Result<T>) -> io::Result<(T, PathBuf)> {
    let mut number = 0_u32;
    loop {
        let name = folder.join(format!("{}{}-{number}{}", PART.0, std::process::id(), PART.1));
        match make(&name) {
            Err(error) if error.kind() == ErrorKind::AlreadyExists => number += 1,
            made => return Ok((made?, name)),
        }
    }
}

/// Removes what killed writers left in a folder.
fn sweep(folder: &Path) {
    let Ok(entries) = fs::read_dir(folder) else { return };
    for entry in entries.flatten() {
        let name = entry.file_name();
        let name = name.to_string_lossy();
        let regular = entry.file_type().is_ok_and(|kind| kind.is_file());
        if !(regular && name.starts_with(PART.0) && name.ends_with(PART.1)) {
            continue;
        }
        if let Ok(file) = File::open(entry.path())
            && rustix::fs::flock(file.as_fd(), FlockOperation::NonBlockingLockExclusive).is_ok()
        {
            let _ = fs::remove_file(entry.path());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Folder(PathBuf);

    impl Folder {
        fn new(name: &str) -> Self {
            let path = std::env::temp_dir().join(format!("xtask-{name}-{}", std::process::id()));
            fs::create_dir_all(&path).unwrap();
            Self(path)
        }

        fn names(&self) -> Vec<std::ffi::OsString> {
            let mut names: Vec<_> = fs::read_dir(&self.0).unwrap().map(|e| e.unwrap().file_name()).collect();
            names.sort();
            names
        }
    }

    impl Drop for Folder {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    #[test]
    fn a_failed_write_leaves_nothing() {
        let folder = Folder::new("write");
        fs::create_dir_all(folder.0.join("taken")).unwrap();
        assert!(write_atomically(&folder.0.join("taken"), b"x").is_err());
        write_atomically(&folder.0.join("file"), b"x").unwrap();
        assert_eq!(folder.names(), ["file", "taken"]);
    }

    /// The way of file systems without nameless files gives the same.
    #[test]
    fn a_named_part_takes_the_place_too() {
        let folder = Folder::new("named");
        for text in ["first", "second"] {
            let mut part = Part::named(&folder.0).unwrap();
            part.file.write_all(text.as_bytes()).unwrap();
            assert_eq!(folder.names().len(), if text == "first" { 1 } else { 2 });
            sweep(&folder.0);
            part.publish(&folder.0.join("file")).unwrap();
            assert_eq!(fs::read_to_string(folder.0.join("file")).unwrap(), text);
            assert_eq!(folder.names(), ["file"]);
        }
        drop(Part::named(&folder.0).unwrap());
        assert_eq!(folder.names(), ["file"]);
    }
}
