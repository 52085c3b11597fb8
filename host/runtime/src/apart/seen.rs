//! Images as the process that runs plugins sees them: by a descriptor that is open for reading, or
//! over the socket. Neither needs a path, or a look at the file but for its end.

use std::fs::File;
use std::io::{self, ErrorKind};
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;

use nix::libc;
use snapslot_disk::{Disk, DiskError, Doing, Range};

use super::child::{Line, confused};
use super::wire::{Told, Word};

/// An image, for reading.
pub(super) struct Image {
    pub(super) name: String,
    pub(super) source: Source,
}

/// Where its bytes come from.
pub(super) enum Source {
    File(File),
    Socket(Line),
}

impl Image {
    fn failed(&self, source: io::Error) -> DiskError {
        DiskError::io(self.name.clone(), Doing::Read, source)
    }

    fn told(&self, words: String) -> DiskError {
        self.failed(io::Error::other(words))
    }

    fn never(&self) -> DiskError {
        let what = io::Error::from(ErrorKind::ReadOnlyFilesystem);
        DiskError::io(self.name.clone(), Doing::Write, what)
    }

    fn outside(&self, size: u64, offset: u64, length: usize) -> DiskError {
        DiskError::OutOfBounds { name: self.name.clone(), size, offset, length: length as u64 }
    }
}

impl Disk for Image {
    fn size(&self) -> Result<u64, DiskError> {
        match &self.source {
            Source::File(file) => end(file).map_err(|e| self.failed(e)),
            Source::Socket(line) => match line.ask(&Word::Size) {
                Told::Size(size) => size.map_err(|fault| fault.again(&self.name, 0, 0)),
                _ => Err(self.told(confused().message)),
            },
        }
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<(), DiskError> {
        match &self.source {
            Source::File(file) => match file.read_exact_at(buf, offset) {
                Ok(()) => Ok(()),
                // Past what a file can have the kernel knows no offset.
                Err(e)
                    if matches!(e.kind(), ErrorKind::UnexpectedEof | ErrorKind::InvalidInput) =>
                {
                    Err(self.outside(self.size()?, offset, buf.len()))
                }
                Err(error) => Err(self.failed(error)),
            },
            Source::Socket(line) => {
                let length = u32::try_from(buf.len())
                    .map_err(|_| self.told("more than four gibibytes at once".to_owned()))?;
                match line.ask(&Word::Read { offset, length }) {
                    Told::Bytes(Ok(bytes)) if bytes.len() == buf.len() => {
                        buf.copy_from_slice(&bytes);
                        Ok(())
                    }
                    Told::Bytes(Err(fault)) => Err(fault.again(&self.name, offset, buf.len())),
                    _ => Err(self.told(confused().message)),
                }
            }
        }
    }

    /// Into room that was not filled with zeroes before: tables are read in megabytes.
    fn read_append(&self, offset: u64, length: usize, buf: &mut Vec<u8>) -> Result<(), DiskError> {
        let before = buf.len();
        let Source::File(file) = &self.source else {
            buf.resize(before + length, 0);
            let result = self.read_at(offset, &mut buf[before..]);
            if result.is_err() {
                buf.truncate(before);
            }
            return result;
        };
        buf.reserve(length);
        let mut done = 0;
        while done < length {
            let room = &mut buf.spare_capacity_mut()[done..length];
            let at = offset.checked_add(done as u64).and_then(|at| i64::try_from(at).ok());
            let Some(at) = at else { return Err(self.outside(self.size()?, offset, length)) };
            // SAFETY: the descriptor is open as long as `self` is, and `room` is that long and may be
            // written.
            let read =
                unsafe { libc::pread(file.as_raw_fd(), room.as_mut_ptr().cast(), room.len(), at) };
            match usize::try_from(read) {
                Ok(0) => return Err(self.outside(self.size()?, offset, length)),
                Ok(read) => done += read,
                Err(_) => {
                    let error = io::Error::last_os_error();
                    if error.kind() != ErrorKind::Interrupted {
                        return Err(self.failed(error));
                    }
                }
            }
        }
        // SAFETY: so many bytes behind the old end have room and were read just now.
        unsafe { buf.set_len(before + length) };
        Ok(())
    }

    fn write_at(&self, _: u64, _: &[u8]) -> Result<(), DiskError> {
        Err(self.never())
    }

    fn extend(&self, _: u64) -> Result<(), DiskError> {
        Err(self.never())
    }

    fn reserve(&self, _: &[Range]) -> Result<bool, DiskError> {
        Ok(false)
    }

    fn release_reserve(&self) -> Result<(), DiskError> {
        Ok(())
    }

    fn flush(&self) -> Result<(), DiskError> {
        Err(self.never())
    }
}

/// Where a file or device ends.
pub(super) fn end(file: &File) -> io::Result<u64> {
    // SAFETY: it moves the position of this descriptor, which nobody uses: reads say where.
    let end = unsafe { libc::lseek(file.as_raw_fd(), 0, libc::SEEK_END) };
    u64::try_from(end).map_err(|_| io::Error::last_os_error())
}
