"""Fixed networks in the routing space, as forced gates: the public face of `dynroute.space.routes`."""

from dynroute.space.routes import AUTO_DEEPLAB_SCALES, common, fixed, list_fixed, single_path

__all__ = ["AUTO_DEEPLAB_SCALES", "common", "fixed", "list_fixed", "single_path"]
