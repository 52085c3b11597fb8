//! Words on the socket between the engine and the process that runs plugins.
//!
//! A frame is its length (32 bits, little endian) and that many bytes of postcard; a descriptor may
//! come with it. Both sides bound what they take in before they take it in.

use std::io::{self, IoSlice, IoSliceMut, Read, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use nix::cmsg_space;
use nix::sys::socket::{ControlMessage, ControlMessageOwned, MsgFlags, recvmsg, sendmsg};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::sandbox::Confinement;
use crate::bindings::types::{Answer, Argument, Description, Failure, SavedCopy, Saving};
use crate::call::{Call, Draft, Ended, Reply};
use crate::flaw::Flaw;
use crate::outside::Loud;

/// The largest frame: a plan with all its data, and what it takes to write it down.
const FRAME_MAX: u64 = (1 << 30) + (256 << 20);

/// To the process.
#[derive(Debug, Serialize, Deserialize)]
pub(super) enum Order {
    /// First of all: how long a call may compute.
    Begin { own_time_max: Duration },
    /// Make ready what was compiled before: its code is the file that comes with this.
    Load { digest: String },
    /// Compile and make ready.
    Compile {
        digest: String,
        #[serde(with = "serde_bytes")]
        component: Vec<u8>,
    },
    /// What this one may see and plan: its own description, narrowed to what was approved.
    Grant { digest: String, description: Description },
    /// Call it. A descriptor that comes with this is the volume's image.
    Call { digest: String, call: Call, seen: Option<SeenThere> },
}

/// A volume as the process is told of it.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct SeenThere {
    pub(super) kind: u8,
    pub(super) place: String,
    pub(super) disk: DiskThere,
}

/// Where its image is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum DiskThere {
    /// There is none, or it is not granted.
    None,
    /// By the descriptor that comes with the order.
    Descriptor,
    /// Over the socket.
    Socket,
}

/// From the process.
#[derive(Debug, Serialize, Deserialize)]
pub(super) enum Word {
    Ready {
        key: u64,
        confinement: Confinement,
    },
    Loaded(Result<Vec<String>, Vec<Flaw>>),
    /// The kept code is damaged.
    Damaged,
    Compiled {
        imports: Vec<String>,
        code: Option<serde_bytes::ByteBuf>,
    },
    Ask {
        query: String,
        arguments: Vec<Argument>,
    },
    Copies,
    Saving,
    Log {
        loud: Loud,
        message: String,
    },
    Size,
    Read {
        offset: u64,
        length: u32,
    },
    Ended(Result<Reply<Draft>, Ended>),
}

/// What the engine says to a word that asks.
#[derive(Debug, Serialize, Deserialize)]
pub(super) enum Told {
    Answer(Result<Answer, Failure>),
    Copies(Result<Vec<SavedCopy>, Failure>),
    Saving(Result<Saving, Failure>),
    Size(Result<u64, String>),
    Bytes(Result<serde_bytes::ByteBuf, ReadFault>),
}

/// A read that failed.
#[derive(Debug, Serialize, Deserialize)]
pub(super) enum ReadFault {
    Outside { size: u64 },
    Failed(String),
}

/// One end of the socket.
#[derive(Debug)]
pub(super) struct Channel(UnixStream);

impl Channel {
    pub(super) fn new(socket: UnixStream) -> Channel {
        Channel(socket)
    }

    pub(super) fn send<T: Serialize>(
        &mut self,
        words: &T,
        descriptor: Option<BorrowedFd<'_>>,
    ) -> io::Result<()> {
        let mut frame = vec![0; 4];
        frame = postcard::to_extend(words, frame).map_err(io::Error::other)?;
        let length = u32::try_from(frame.len() - 4).map_err(io::Error::other)?;
        frame[..4].copy_from_slice(&length.to_le_bytes());
        let mut sent = 0;
        if let Some(descriptor) = descriptor {
            let raw = [descriptor.as_raw_fd()];
            let with = [ControlMessage::ScmRights(&raw)];
            let parts = [IoSlice::new(&frame)];
            let flags = MsgFlags::MSG_NOSIGNAL;
            sent = loop {
                match sendmsg::<()>(self.0.as_raw_fd(), &parts, &with, flags, None) {
                    Err(nix::errno::Errno::EINTR) => {}
                    result => break result?,
                }
            };
        }
        self.0.write_all(&frame[sent..])
    }

    /// The next frame, and the descriptor that came with it. Waits at most this long for each
    /// sign of life; none: for ever.
    pub(super) fn receive<T: DeserializeOwned>(
        &mut self,
        patience: Option<Duration>,
    ) -> io::Result<(T, Option<OwnedFd>)> {
        self.0.set_read_timeout(patience)?;
        let mut head = [0; 4];
        let mut descriptor = None;
        let mut have = 0;
        while have < head.len() {
            let mut space = cmsg_space!([i32; 1]);
            let mut parts = [IoSliceMut::new(&mut head[have..])];
            let flags = MsgFlags::MSG_CMSG_CLOEXEC;
            let got = recvmsg::<()>(self.0.as_raw_fd(), &mut parts, Some(&mut space), flags);
            let got = match got {
                Err(nix::errno::Errno::EINTR) => continue,
                got => got?,
            };
            for message in got.cmsgs()? {
                if let ControlMessageOwned::ScmRights(raws) = message {
                    for raw in raws {
                        // SAFETY: the kernel has just made this descriptor for us.
                        descriptor = Some(unsafe { OwnedFd::from_raw_fd(raw) });
                    }
                }
            }
            if got.bytes == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            have += got.bytes;
        }
        let length = u64::from(u32::from_le_bytes(head));
        if length > FRAME_MAX {
            return Err(io::Error::other("a frame is longer than any has reason to be"));
        }
        // Grows with what arrives: a length alone makes nobody set memory aside.
        let mut frame = Vec::new();
        (&self.0).take(length).read_to_end(&mut frame)?;
        if frame.len() as u64 != length {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        Ok((postcard::from_bytes(&frame).map_err(io::Error::other)?, descriptor))
    }
}

impl AsFd for Channel {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}
