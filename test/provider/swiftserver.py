"""OpenStack Swift in one process: proxy, account, container and object server below
a directory, with TempAuth. Says where it listens."""

import os
import sys

import eventlet

eventlet.patcher.monkey_patch(all=False, socket=True, select=True, thread=True, time=True)

from swift.common import utils  # noqa: E402

root = sys.argv[1]
utils.SWIFT_CONF_FILE = os.path.join(root, "swift.conf")
with open(utils.SWIFT_CONF_FILE, "w") as f:
    f.write("[swift-hash]\nswift_hash_path_suffix = test\n[storage-policy:0]\nname = one\ndefault = yes\n")

from swift.account import server as account  # noqa: E402
from swift.common import storage_policy  # noqa: E402
from swift.common.ring import RingBuilder  # noqa: E402
from swift.common.wsgi import SwiftHttpProtocol, loadapp  # noqa: E402
from swift.container import server as container  # noqa: E402
from swift.obj import server as obj  # noqa: E402

utils.validate_configuration()
storage_policy.reload_storage_policies()


class Cache:
    """What Swift wants of memcached."""

    def __init__(self, app):
        self.app, self.kept = app, {}

    def get(self, key, **_):
        return self.kept.get(key)

    def set(self, key, value, **_):
        self.kept[key] = value

    def incr(self, key, delta=1, **_):
        self.kept[key] = self.kept.get(key, 0) + delta
        return self.kept[key]

    def delete(self, key, **_):
        self.kept.pop(key, None)

    def __call__(self, env, start_response):
        env["swift.cache"] = self
        return self.app(env, start_response)


PROXY = """[pipeline:main]
pipeline = catch_errors cache bulk tempauth proxy-server
[app:proxy-server]
use = egg:swift#proxy
swift_dir = %(root)s
account_autocreate = true
log_address = /nonexistent
[filter:catch_errors]
use = egg:swift#catch_errors
[filter:bulk]
use = egg:swift#bulk
[filter:tempauth]
use = egg:swift#tempauth
user_mail_store = secret .admin
[filter:cache]
paste.filter_factory = __main__:cache
"""


def cache(_conf, **_):
    return Cache


def serve(app, sock):
    eventlet.spawn(eventlet.wsgi.server, sock, app, utils.NullLogger(), protocol=SwiftHttpProtocol)


def main():
    devices = os.path.join(root, "devices")
    os.makedirs(os.path.join(devices, "disk"))
    conf = {"swift_dir": root, "devices": devices, "mount_check": "false", "log_address": "/nonexistent", "fallocate_reserve": "0"}
    for name, server in (("account", account.AccountController), ("container", container.ContainerController), ("object", obj.ObjectController)):
        sock = eventlet.listen(("127.0.0.1", 0))
        ring = RingBuilder(2, 1, 0)
        ring.add_dev({"id": 0, "region": 1, "zone": 1, "weight": 1.0, "ip": "127.0.0.1", "port": sock.getsockname()[1], "device": "disk",
                      "replication_ip": "127.0.0.1", "replication_port": sock.getsockname()[1]})
        ring.rebalance()
        ring.get_ring().save(os.path.join(root, name + ".ring.gz"))
        serve(server(conf), sock)
    path = os.path.join(root, "proxy-server.conf")
    with open(path, "w") as f:
        f.write(PROXY % {"root": root})
    sock = eventlet.listen(("127.0.0.1", 0))
    serve(loadapp(path, global_conf={"log_name": "swift"}), sock)
    print("listening on http://127.0.0.1:%d" % sock.getsockname()[1], flush=True)
    while True:
        eventlet.sleep(3600)


main()
