"""A replica: a target with the volume's chain of lvols, and its exports."""

import contextlib

from target import Target, free_port

MIB = 1 << 20
CLUSTER = MIB
BLOCK = 4096
IQN = 'iqn.2016-06.io.spdk'
NQN = 'nqn.2016-06.io.spdk'


def alias(lvol):
    return f'lvs/{lvol}'


class Replica(Target):
    """Its lvols are named without their lvstore, which is lvs."""

    def __init__(self, name, folder, cpu, disk):
        """The disk is a file: an empty one, or one with an lvstore, which is loaded."""
        super().__init__(name, folder, cpu)
        self._exposed = set()
        try:
            self.rpc('bdev_aio_create', filename=str(disk), name='base', block_size=BLOCK)
            self.rpc('bdev_wait_for_examine')
            self._serve()
        except BaseException:
            self.stop()
            raise

    def _serve(self):
        self._iscsi_port = free_port()
        portal = {'host': '127.0.0.1', 'port': str(self._iscsi_port)}
        self.rpc('iscsi_create_portal_group', tag=1, portals=[portal])
        self.rpc(
            'iscsi_create_initiator_group',
            tag=1,
            initiators=['ANY'],
            netmasks=['127.0.0.1/32'],
        )
        self.rpc('nvmf_create_transport', trtype='TCP')

    # --- lvols -----------------------------------------------------------------------------

    def create_lvstore(self):
        self.rpc('bdev_lvol_create_lvstore', bdev_name='base', lvs_name='lvs', cluster_sz=CLUSTER)

    def create(self, lvol, size):
        self.rpc(
            'bdev_lvol_create',
            lvs_name='lvs',
            lvol_name=lvol,
            size_in_mib=size // MIB,
            thin_provision=True,
        )

    def clone(self, snapshot, lvol):
        self.rpc('bdev_lvol_clone', snapshot_name=alias(snapshot), clone_name=lvol)

    def snapshot(self, lvol, snapshot):
        self.rpc('bdev_lvol_snapshot', lvol_name=alias(lvol), snapshot_name=snapshot)

    def delete(self, lvol):
        if lvol in self._exposed:
            self.rpc('iscsi_delete_target_node', name=f'{IQN}:{lvol}')
            self._exposed.remove(lvol)
        self.rpc('bdev_lvol_delete', name=alias(lvol))

    def set_parent(self, lvol, snapshot):
        self.rpc('bdev_lvol_set_parent', lvol_name=alias(lvol), parent_name=alias(snapshot))

    def set_parent_bdev(self, lvol, bdev):
        self.rpc('bdev_lvol_set_parent_bdev', lvol_name=alias(lvol), parent_name=bdev)

    def clone_bdev(self, bdev, lvol):
        self.rpc('bdev_lvol_clone_bdev', bdev=bdev, lvs_name='lvs', clone_name=lvol)

    def detach_parent(self, lvol):
        self.rpc('bdev_lvol_detach_parent', name=alias(lvol))

    def decouple_parent(self, lvol):
        self.rpc('bdev_lvol_decouple_parent', name=alias(lvol))

    def lvol(self, lvol):
        """What the target says of it."""
        (bdev,) = self.rpc('bdev_get_bdevs', name=alias(lvol))
        return bdev['driver_specific']['lvol']

    def allocated(self, lvol):
        return self.lvol(lvol)['num_allocated_clusters'] * CLUSTER

    def shape(self, lvols):
        """Each lvol's parent and the clusters that it owns."""
        return {
            lvol: (info.get('base_snapshot'), info['num_allocated_clusters'])
            for lvol, info in ((lvol, self.lvol(lvol)) for lvol in lvols)
        }

    # --- exports; a failure ends the target, and them with it ---------------------------------

    def url(self, lvol):
        """Where the outside client finds an lvol, which stays exposed until it is deleted.

        That it stays is of use: an lvol that is lent can be exposed before, but not meanwhile.
        """
        if lvol not in self._exposed:
            self.rpc(
                'iscsi_create_target_node',
                name=lvol,
                alias_name=lvol,
                pg_ig_maps=[{'pg_tag': 1, 'ig_tag': 1}],
                luns=[{'bdev_name': alias(lvol), 'lun_id': 0}],
                queue_depth=64,
                disable_chap=True,
            )
            self._exposed.add(lvol)
        return f'iscsi://127.0.0.1:{self._iscsi_port}/{IQN}:{lvol}/0'

    @contextlib.contextmanager
    def lent_to(self, other, lvol):
        """Attaches an lvol to another replica's target over NVMe-oF TCP, as a bdev of this name."""
        nqn = f'{NQN}:{lvol}'
        address = {
            'trtype': 'TCP',
            'adrfam': 'IPv4',
            'traddr': '127.0.0.1',
            'trsvcid': str(free_port()),
        }
        controller = f'{self.name}-{lvol}'
        self.rpc('nvmf_create_subsystem', nqn=nqn, allow_any_host=True)
        self.rpc('nvmf_subsystem_add_ns', nqn=nqn, namespace={'bdev_name': alias(lvol)})
        self.rpc('nvmf_subsystem_add_listener', nqn=nqn, listen_address=address)
        (bdev,) = other.rpc('bdev_nvme_attach_controller', name=controller, subnqn=nqn, **address)
        yield bdev
        other.rpc('bdev_nvme_detach_controller', name=controller)
        self.rpc('nvmf_delete_subsystem', nqn=nqn)
