//! How an operation has failed.

use std::fmt;
use std::os::raw::c_int;

use errno::Errno;

/// An errno, and what was wrong with which lvol in words that help an operator.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Error {
    errno: Errno,
    what: String,
}

/// The outcome of an operation of this crate.
pub type Result<T> = std::result::Result<T, Error>;

impl Error {
    /// Takes the errno with either sign: SPDK returns it negated.
    pub fn new(errno: c_int, what: impl Into<String>) -> Error {
        Error { errno: Errno(errno.abs()), what: what.into() }
    }

    /// The negated errno: the code of the JSON-RPC error, and what C's callback is given.
    pub fn code(&self) -> c_int {
        -self.errno.0
    }

    /// Whether the same may work a little later.
    pub(crate) fn is_busy(&self) -> bool {
        self.errno.0 == libc::EBUSY
    }

    /// Whether what the target has in memory can't be right.
    pub fn is_inconsistent(&self) -> bool {
        self.errno.0 == libc::EUCLEAN
    }

    /// Whether nothing is wrong but what was asked for, or when.
    pub(crate) fn is_refusal(&self) -> bool {
        [libc::ENODEV, libc::EINVAL, libc::EBUSY, libc::EPERM, libc::ESHUTDOWN]
            .contains(&self.errno.0)
    }

    /// Whether the SPDK that runs is not the one that this is built for.
    pub(crate) fn is_misfit(&self) -> bool {
        self.errno.0 == libc::ENOTSUP
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.errno, self.what)
    }
}

impl std::error::Error for Error {}

/// Turns a C return code into a `Result`; `what` says what was being done.
pub fn check(rc: c_int, what: impl FnOnce() -> String) -> Result<()> {
    if rc == 0 { Ok(()) } else { Err(Error::new(rc, what())) }
}
