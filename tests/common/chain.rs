//! The chain that several tests begin with.

use super::lvstore::Lvstore;
use super::target::Target;

impl Target {
    /// One with the lvstore `lvs`.
    pub fn with_lvstore(lvstore: Lvstore) -> Target {
        let mut target = Target::start();
        target.create_lvstore("lvs", lvstore);
        target
    }

    /// snap1 <- snap2 <- snap3 <- vol, in `lvs` with clusters of 1 MiB:
    ///
    ///     snap1 owns 0 1 2 3     snap2 owns 1 2 4     snap3 owns 2 5     vol owns 3 6
    #[track_caller]
    pub fn create_chain(&self) {
        self.create_thin("lvs/vol", 8);
        self.write("lvs/vol", &[(0, 0x11), (1, 0x11), (2, 0x11), (3, 0x11)]);
        self.snapshot("lvs/vol", "lvs/snap1");
        self.write("lvs/vol", &[(1, 0x22), (2, 0x22), (4, 0x22)]);
        self.snapshot("lvs/vol", "lvs/snap2");
        self.write("lvs/vol", &[(2, 0x33), (5, 0x33)]);
        self.snapshot("lvs/vol", "lvs/snap3");
        self.write("lvs/vol", &[(3, 0x44), (6, 0x44)]);
    }
}
