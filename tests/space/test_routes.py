import pytest
import torch

from dynroute import routes
from dynroute.space.wiring import path_exists
from tests.support.networks import random_images, random_network


@pytest.mark.parametrize("name", routes.list_fixed())
@pytest.mark.parametrize("layers", [12, 16, 33])
def test_fixed_routes_are_paths_of_the_space(name: str, layers: int) -> None:
    route = routes.fixed(name, layers)
    assert route.shape == (layers + 1, 4, 3) and route.dtype == torch.bool
    assert not (route & ~path_exists(layers)).any()
    assert route[0].any() and route[layers].any()


def test_unet_joins_every_scale_on_its_way_up() -> None:
    route = routes.fixed("unet", 8)
    net = random_network(layers=8)
    out = net(random_images(1, 64, 64), gates=route.float())
    assert torch.equal(out.gates[0] > 0, route)
    assert route[8].nonzero().tolist() == [[0, 1]]  # only keep at 1/4 reaches the decoder
    assert [int(route[7 - s, s + 1, 0]) for s in range(3)] == [1, 1, 1]


def test_auto_deeplab_is_its_published_scales() -> None:
    route = routes.fixed("auto_deeplab", 12)
    visited = [int(route[row].any(-1).nonzero()) for row in range(1, 13)]
    assert visited == list(routes.AUTO_DEEPLAB_SCALES)


@pytest.mark.parametrize("name, layers", [("nonesuch", 16), ("unet", 5), ("auto_deeplab", 11), ("fcn32s", 3)])
def test_errors(name: str, layers: int) -> None:
    with pytest.raises(ValueError, match="wanted"):
        routes.fixed(name, layers)
