//! A blobstore's channel: what of it an SPDK thread has for its own.

use spdk_sys as sys;

/// A channel of a blobstore.
///
/// # Invariants
///
/// `0` is a blobstore's channel, which stays while the value is used, and the current SPDK thread is
/// the one that it belongs to.
#[derive(Debug, Clone, Copy)]
pub struct Channel(*mut sys::spdk_bs_channel);

impl Channel {
    /// # Safety
    ///
    /// `channel` is a blobstore's, and the current SPDK thread's, and stays while the result is used.
    pub unsafe fn new(channel: *mut sys::spdk_io_channel) -> Channel {
        // `spdk_io_channel_get_ctx`, which is inline: a channel is allocated with its context behind it.
        let context = channel.cast::<u8>().wrapping_add(sys::SPDK_IO_CHANNEL_STRUCT_SIZE as usize);
        Channel(context.cast())
    }

    /// The one that the blobstore writes its metadata by.
    ///
    /// # Safety
    ///
    /// `bs` is loaded, and stays so while the result is used; the current SPDK thread is its metadata
    /// thread.
    pub unsafe fn of_metadata(bs: *mut sys::spdk_blob_store) -> Channel {
        // SAFETY: what the caller says.
        unsafe { Channel::new((*bs).md_channel) }
    }

    /// For those who know its fields.
    pub fn as_ptr(self) -> *mut sys::spdk_bs_channel {
        self.0
    }

    /// The channel of the device that the blobstore is on.
    pub fn dev_channel(self) -> *mut sys::spdk_io_channel {
        // SAFETY: the channel is there (invariant); the field never changes.
        unsafe { (*self.0).dev_channel }
    }
}
