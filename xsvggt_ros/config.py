# SPDX-License-Identifier: Apache-2.0
"""Every setting of the package, declared once.

ROS parameters, command-line flags, `config/stream.yaml`, the launch file's arguments and the table of parameters are
all derived from the fields below.
"""

from __future__ import annotations

from dataclasses import dataclass

from xsvggt_ros.settings import Checked, Where, group, setting

POLICIES = (
    "coreset",
    "xstream",
    "stac",
    "frame_bank",
    "output_aware",
    "infinite",
    "ovggt",
    "ghost",
    "window_specials",
    "sliding_window",
    "random",
    "full",
)
QUANTIZERS = ("rotated", "channel")
BITS = (1, 2, 3, 4, 8, 16)
PATCH_SIZE = 14  # pixels a side of what becomes one token, in every StreamVGGT


@dataclass(frozen=True)
class CacheConfig(Checked):
    """What the key/value cache may hold. Everything here changes live."""

    policy: str = setting(
        "coreset",
        "Which cached tokens stay, beside those of the first and newest frame: coreset (attended to most, and weighing "
        "as much as those like them that left), xstream (closest to the current query), stac (attended to most, and "
        "the others merged by where they are), frame_bank (of whole frames, sparser with "
        "age), output_aware (most weight in the outputs so far), infinite (keys most unlike the others), ovggt (new "
        "ones that the network changed most, old ones as infinite), ghost (seen with most motion, structure and "
        "confidence), window_specials (the newest, and special tokens longer), sliding_window (the newest), random "
        "(control), full (all; memory grows).",
        choices=POLICIES,
        live=True,
    )
    budget_frames: float = setting(
        16.0,
        "Most frames of tokens cached per global layer, where neither of the next two is set.",
        unit="frames",
        minimum=0.0,
        maximum=1e6,
        live=True,
    )
    budget_tokens: int = setting(
        0,
        "Most tokens of past frames cached per global layer; 0: not limited in tokens.",
        unit="tokens",
        minimum=0,
        maximum=10**12,
        live=True,
    )
    budget_mib: float = setting(
        0.0,
        "Most memory of the whole cache, camera head included; 0: not limited in MiB. "
        "With both limits set the tighter one holds.",
        unit="MiB",
        minimum=0.0,
        maximum=1e6,
        live=True,
    )
    layer_budgets: str = setting(
        "equal",
        "how tokens are divided among the global layers: equal, adaptive (more to those whose keys are less alike, as "
        "InfiniteVGGT; measured once, when the budget has filled).",
        choices=("equal", "adaptive"),
        live=True,
        where=Where("policy", ("frame_bank", "full"), but=True),
    )
    key_bits: int = setting(2, "Bits per cached key value; 16: the compute dtype.", choices=BITS, live=True)
    value_bits: int = setting(2, "Bits per cached value; 16: the compute dtype.", choices=BITS, live=True)
    quantizer: str = setting(
        "rotated",
        "How fewer than 16 bits are made: rotated (in a rotated basis, each token by itself), channel (XStreamVGGT's "
        "published scheme: keys per channel of up to 64 tokens, values per token).",
        choices=QUANTIZERS,
        live=True,
    )
    query_pool: int = setting(
        16,
        "patches averaged into one row of the query summary; larger weighs special tokens more.",
        unit="patches",
        minimum=1,
        maximum=10_000,
        live=True,
        where=Where("policy", ("xstream",)),
    )
    probes: int = setting(
        8,
        "patches of a new frame, beside its special tokens, that are asked what they attend to; 0: all.",
        unit="patches",
        minimum=0,
        maximum=10_000,
        live=True,
        where=Where("policy", ("coreset", "stac", "output_aware")),
    )
    per_head: bool = setting(
        False,
        "each head keeps tokens of its own choice, as published, instead of all heads the same; which they are then "
        "takes memory for each head.",
        live=True,
        where=Where("policy", ("coreset", "stac", "output_aware", "infinite")),
    )
    pin_first_frame: bool = setting(
        True,
        "always keep the first frame, which carries the scale.",
        live=True,
        where=Where("policy", ("sliding_window",)),
    )
    seed: int = setting(
        0,
        "seed of the selection.",
        minimum=0,
        maximum=2**31 - 1,
        live=True,
        where=Where("policy", ("random",)),
    )
    camera_window: int = setting(
        32,
        "Frames the camera head's cache keeps beside the first; 0: all (memory grows; for comparisons only).",
        unit="frames",
        minimum=0,
        maximum=1_000_000,
        live=True,
    )
    adaptive: bool = setting(
        False,
        "the budget is the most there may be, and what is in force grows towards it with the number of different views "
        "of the scene.",
        live=True,
        where=Where("policy", ("full",), but=True),
    )
    camera_passes: str = setting(
        "shared",
        "What a refinement pass of the camera head sees of other frames: shared (all their passes, as published), "
        "apart (the same pass).",
        choices=("shared", "apart"),
        live=True,
    )
    intake: str = setting(
        "every",
        "Which frames the cache takes in: every, moved (those whose view is new; others are answered, and see what is "
        "cached, but leave it as it is: a camera that stands still does not push out what it saw before).",
        choices=("every", "moved"),
        live=True,
    )
    intake_degrees: float = setting(
        5.0,
        "by how much the view must have turned, and what lies at the median depth have shifted, both together, since "
        "the last frame that was taken in.",
        unit="degrees",
        minimum=0.0,
        maximum=180.0,
        live=True,
        where=Where("intake", ("moved",)),
    )
    chunk: int = setting(
        1,
        "Frames taken in at once: they see each other, and their outputs come when the last of them has; 1: lowest "
        "latency.",
        unit="frames",
        minimum=1,
        maximum=32,
        live=True,
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.policy != "full" and not (self.budget_frames or self.budget_tokens or self.budget_mib):
            raise ValueError(
                f"policy {self.policy} needs a budget: set budget_frames, budget_tokens or budget_mib above 0, or "
                "policy to full"
            )
        if self.budget_mib and not self.camera_window:
            raise ValueError("budget_mib holds for the camera head's cache too: set camera_window above 0")


@dataclass(frozen=True)
class SegmentConfig(Checked):
    """When a stream goes on in a fresh cache, so that its drift does not grow with its length."""

    enabled: bool = setting(
        False,
        "Long streams become a chain of segments, each with a fresh cache and a first frame of its own; three caches "
        "of a third of the budget each, and with each image at most 1.4 times segment.work of a step more.",
        live=True,
    )
    overlap: float = setting(
        0.75,
        "A new segment begins when the camera and the segment's first frame see less than this share of each other's "
        "views.",
        minimum=0.05,
        maximum=0.95,
        live=True,
    )
    shared: int = setting(
        2,
        "Images that both segments take in; the newest two tell how they join.",
        unit="images",
        minimum=1,
        maximum=32,
        live=True,
    )
    work: float = setting(
        0.5,
        "Most work on the segment to come with each image, as a share of a step; less: shorter steps, and later joins.",
        minimum=0.1,
        maximum=1.0,
        live=True,
    )
    carried: float = setting(
        0.55,
        "From one image to the next the camera was carried elsewhere if what the encoder says of them is less alike "
        "than this, and that of the images before and after by 0.2 more; a segment begins there as after a pause. 0: "
        "never.",
        minimum=0.0,
        maximum=1.0,
        live=True,
    )


@dataclass(frozen=True)
class LoopConfig(Checked):
    """How a place is known again, and what follows from that; for streams of segments."""

    enabled: bool = setting(
        True, "Segments begin at a keyframe seen before where one is in view, which corrects the map.", live=True
    )
    keyframes: int = setting(
        64,
        "First frames of segments that are remembered, about 3 bytes per pixel of the network's image each.",
        unit="frames",
        minimum=3,
        maximum=1000,
        live=True,
    )
    likeness: float = setting(
        0.72,
        "Least likeness, of what the encoder says, at which a keyframe is tried.",
        minimum=0.0,
        maximum=1.0,
        live=True,
    )
    agreement: float = setting(
        0.45,
        "Least share of both views whose depths agree within a tenth, at which a keyframe is taken for the same place.",
        minimum=0.0,
        maximum=1.0,
        live=True,
    )
    match: float = setting(
        0.72,
        "Least likeness of what the encoder says at the same points of both views, at which it is.",
        minimum=0.0,
        maximum=1.0,
        live=True,
    )
    max_turn: float = setting(
        35.0,
        "A place is not taken for one that the map has turned by more; further away than 4 joins of segments it may be "
        "more, with the square root of their number.",
        unit="degrees",
        minimum=1.0,
        maximum=180.0,
        live=True,
    )
    folder: str = setting("", "Folder of ~/save_map and ~/load_map.", live=True)


@dataclass(frozen=True)
class StreamConfig(Checked):
    """The model and how it runs."""

    weights: str = setting(
        "",
        "Checkpoint (torch or safetensors), or a folder with one; hf://OWNER/NAME or hf://OWNER/NAME/FILE: of that "
        "repository of huggingface.co, downloaded once (NAME@REVISION: of that one); empty: the one that comes with "
        "the model, which only `demo` has; random: random weights, which see nothing.",
    )
    model: str = setting(
        "demo", "Named model configuration the weights belong to.", choices=("streamvggt", "base", "small", "demo")
    )
    device: str = setting("auto", "torch device; auto: cuda if there is one, else cpu.")
    dtype: str = setting(
        "auto",
        "Compute type; auto: bfloat16 on CUDA and on CPUs with bf16 instructions, else float32.",
        choices=("auto", "float32", "bfloat16", "float16"),
    )
    weight_bits: int = setting(
        16,
        "Bits of a weight in the linear layers of encoder, aggregator and camera head (there at least 8), most of the "
        "model; 16: they have the compute type. With fewer, CPUs with AVX2 multiply 8-bit integers, fastest with VNNI; "
        "elsewhere it costs time.",
        choices=(16, 8, 4),
    )
    attention: str = setting(
        "auto",
        "Attention backend; auto: the fastest there is. Policies that weigh tokens (coreset, stac) run on a kernel in "
        "Triton on CUDA, or on sdpa where that does not run or sdpa is chosen.",
        choices=("auto", "sdpa", "flash"),
    )
    compile: str = setting(
        "auto",
        "How steps are launched once the cache is full: graph (as one CUDA graph; until then, and where the policy "
        "decides on the host, kernel by kernel), none (kernel by kernel), compile (a graph of fewer kernels, which "
        "torch.compile makes with Triton: the first image waits half a minute for it, the first with a full cache some "
        "seconds, and so do other sizes and cache settings), auto (graph on CUDA).",
        choices=("auto", "none", "graph", "compile"),
    )
    image_width: int = setting(
        0,
        f"Width the image is resized to, a multiple of {PATCH_SIZE}; 0: the model's own.",
        unit="pixel",
        minimum=0,
        maximum=2800,
        step=PATCH_SIZE,
    )
    max_lateness: float = setting(
        1.0,
        "An image whose stamp is at most this far behind the newest is late: skipped and counted. At one from further "
        "back time has restarted: a new world starts.",
        unit="s",
        minimum=0.0,
    )
    max_gap: float = setting(
        5.0,
        "A longer time between the stamps of two images is an event in the status; 0: never.",
        unit="s",
        minimum=0.0,
    )
    camera_iterations: int = setting(
        4,
        "Refinement passes of the camera head, 4 as published; fewer take less time and memory, and cost accuracy.",
        minimum=1,
        maximum=4,
    )
    refine: bool = setting(
        True,
        "Pose and depth are refined by optical flow beside earlier images, some ten ms of a processor for each; that "
        "needs the depth of each, whoever listens. false: the network's, for views of which most moves.",
        live=True,
    )
    point_head: bool = setting(False, "Predict points with the point head instead of unprojecting the depth.")
    track_groups: int = setting(
        0,
        "How many times points may be given to be followed; each time keeps a feature map. 0: no track head.",
        minimum=0,
        maximum=16,
    )
    track_grid: int = setting(
        0,
        "Points a side of a grid that is followed and begins anew when half of it is out of sight; one of the groups.",
        minimum=0,
        maximum=16,
    )
    cache: CacheConfig = group(CacheConfig, "cache.")
    segment: SegmentConfig = group(SegmentConfig, "segment.")
    loop: LoopConfig = group(LoopConfig, "loop.")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.segment.enabled and self.cache.chunk > 1:
            raise ValueError("segments take in one image at a time: set cache.chunk to 1, or segment.enabled to false")
        if self.segment.enabled and self.cache.policy == "full":
            raise ValueError("policy full grows without end: segments need a budget, so choose another cache.policy")
        if self.track_grid and not self.track_groups:
            raise ValueError("track_grid is one of the groups of points: set track_groups above 0 too")


@dataclass(frozen=True)
class OutputConfig(Checked):
    """What of a frame is given out."""

    confidence_threshold: float = setting(
        1.0, "Depth and points below this confidence become NaN (confidence is at least 1).", minimum=0.0, live=True
    )
    point_stride: int = setting(2, "Every n-th row and column of the points is given out.", minimum=1, live=True)
    depth_encoding: str = setting(
        "32FC1",
        "Of ~/depth/image, as REP 118 has them: 32FC1 (metres, NaN where unknown), 16UC1 (millimetres, 0 where unknown "
        "or above 65.535 m).",
        choices=("32FC1", "16UC1"),
        live=True,
    )
    compressed_depth: bool = setting(
        False, "The depth image as PNG too, on ~/depth/image/compressedDepth, as image_transport takes it.", live=True
    )


@dataclass(frozen=True)
class SizeConfig(Checked):
    """How large what is given out is."""

    resolution: str = setting(
        "network",
        "Size of depth, confidence, colour image and points: network (as it is), input (as the camera's image, with "
        "edges of depth where that has edges).",
        choices=("network", "input"),
        live=True,
    )


@dataclass(frozen=True)
class ScaleConfig(Checked):
    """How many metres the model's unit is."""

    source: str = setting(
        "none",
        "Where the metres come from: none (the model's unit stays), fixed (`scale.factor`), camera_height (distance of "
        "the ground), odometry (nav_msgs/Odometry on `reference/odometry`), tf (motion of `scale.child_frame` in "
        "`scale.parent_frame`), depth (sensor_msgs/Image on `reference/depth`, registered to the camera).",
        choices=("none", "fixed", "camera_height", "odometry", "tf", "depth"),
    )
    factor: float = setting(
        1.0,
        "metres per unit of the model.",
        unit="m",
        minimum=1e-6,
        maximum=1e6,
        live=True,
        where=Where("source", ("fixed",)),
    )
    camera_height: float = setting(
        1.0,
        "the camera's height above the ground.",
        unit="m",
        minimum=0.01,
        maximum=1e4,
        live=True,
        where=Where("source", ("camera_height",)),
    )
    parent_frame: str = setting(
        "",
        "fixed frame of the reference motion, for example the wheel odometry's.",
        frame=True,
        where=Where("source", ("tf",)),
    )
    child_frame: str = setting(
        "",
        "frame whose motion is the reference, for example base_link.",
        frame=True,
        where=Where("source", ("tf",)),
    )
    window: int = setting(
        50,
        "measurements whose median is the scale.",
        minimum=1,
        live=True,
        where=Where("source", ("none", "fixed"), but=True),
    )
    min_motion: float = setting(
        0.2,
        "least reference motion that is measured; several times the error of the stream's positions.",
        unit="m",
        minimum=0.001,
        live=True,
        where=Where("source", ("odometry", "tf")),
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.source == "tf" and not (self.parent_frame and self.child_frame):
            raise ValueError("source tf needs the two frames: set scale.parent_frame and scale.child_frame")
        if self.parent_frame and self.parent_frame == self.child_frame:
            raise ValueError(
                f"child_frame must be another frame than scale.parent_frame, got {self.child_frame!r} for both: "
                "a frame does not move in itself"
            )


@dataclass(frozen=True)
class ObstacleConfig(Checked):
    """What of the depth is an obstacle for a costmap, `~/obstacles`; it needs base_frame and a scale in metres."""

    rate: float = setting(
        5.0, "Most clouds per second; the costmap's update_frequency.", unit="Hz", minimum=0.01, maximum=1000, live=True
    )
    min_height: float = setting(
        0.1, "Lower points, above base_frame, are floor.", unit="m", minimum=-100, maximum=100, live=True
    )
    max_height: float = setting(
        1.5, "Higher points, above base_frame, are passed under.", unit="m", minimum=-100, maximum=100, live=True
    )
    max_range: float = setting(
        5.0, "Points further from the camera are left out.", unit="m", minimum=0.1, maximum=200, live=True
    )
    voxel: float = setting(
        0.05,
        "Edge of the cubes of which each gives one point; the costmap's resolution.",
        unit="m",
        minimum=0.01,
        maximum=10,
        live=True,
    )
    doubt: float = setting(
        0.1,
        "Share of an image's pixels that makes no points, those of least confidence; 0: none.",
        minimum=0.0,
        maximum=0.99,
        live=True,
    )
    edge_angle: float = setting(
        10.0,
        "Surfaces that are seen at a smaller angle make no points: at edges of objects, depth in between is of nothing "
        "that is there; 0: all do.",
        unit="degrees",
        minimum=0.0,
        maximum=89,
        live=True,
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.min_height >= self.max_height:
            raise ValueError(
                f"min_height must be below obstacles.max_height, got {self.min_height} and {self.max_height}"
            )


@dataclass(frozen=True)
class ViewerConfig(Checked):
    """The page in the browser that `viewer` asks for."""

    host: str = setting(
        "127.0.0.1",
        "Address the page is served at. The default: to this machine only (from another one by `ssh -L`). 0.0.0.0: on "
        "all of the machine's. Such pages, and those that control, are open to who has the token that the log says.",
    )
    port: int = setting(8080, "Port the page is served at, or the next that is free; 0: any.", minimum=0, maximum=65535)
    control: bool = setting(
        False, "Whether who sees the page may change live settings, reset, pause, and save the map."
    )
    points: int = setting(
        200_000, "Most points of the cloud on the page.", unit="points", minimum=1000, maximum=2_000_000, live=True
    )
    refresh: float = setting(5.0, "Most updates of the page.", unit="Hz", minimum=0.1, maximum=30.0, live=True)


@dataclass(frozen=True)
class NodeConfig(Checked):
    """The ROS 2 node's own settings, and all the others it passes on."""

    autostart: bool = setting(True, "Configure and activate at start; false: wait for lifecycle transitions.")
    image_transport: str = setting(
        "raw",
        "raw: sensor_msgs/Image on `image`; compressed: CompressedImage on `image/compressed`.",
        choices=("raw", "compressed"),
    )
    queue: str = setting(
        "latest",
        "latest: the newest image, older ones are replaced and counted; all: every image in order.",
        choices=("latest", "all"),
        live=True,
    )
    queue_size: int = setting(
        30,
        "queue all: images kept waiting before new ones are refused and counted.",
        minimum=1,
        maximum=10_000,
    )
    target_latency_ms: float = setting(
        0.0,
        "Most time from an image's arrival to its outputs; while it takes longer the node gives up point density, then "
        "publishing rate, then cache budget (~/status: shed_level). Segments are made in what time is left. 0: never.",
        unit="ms",
        minimum=0.0,
        live=True,
    )
    camera_frame: str = setting(
        "",
        "frame_id of the camera to follow where several send on one topic; empty: that of the first image, until "
        "~/reset.",
        frame=True,
        live=True,
    )
    rectify: bool = setting(
        True,
        "Undo the lens distortion that camera_info states; false: images are rectified already, as image_rect is.",
        live=True,
    )
    world_frame: str = setting(
        "odom", "Parent frame of the published pose; fixed, x forward, y left, z up.", frame=True
    )
    map_frame: str = setting(
        "map",
        "Parent of world_frame: there segments say what of the way is corrected when a place is seen again, and "
        "continue_odom where a world began; with publish_map false the frame is another node's.",
        frame=True,
    )
    continue_odom: bool = setting(
        False,
        "world_frame never jumps (REP 105): a new world, as after ~/reset, begins there where the last one ended, and "
        "map_frame -> world_frame says where its origin is. false: it begins at the origin of world_frame.",
    )
    base_frame: str = setting(
        "",
        "Child frame of the published pose, whose transform to the camera is looked up in TF; empty: the image's "
        "frame_id, with the first camera taken as level.",
        frame=True,
    )
    publish_tf: bool = setting(True, "Send the pose to /tf.", live=True)
    publish_map: bool = setting(
        True,
        "Send map_frame -> world_frame there too, where segments or continue_odom make one; false: another node does "
        "(AMCL, a SLAM), as a frame has one parent, and ~/keyframes, in our own map, are left out.",
        live=True,
    )
    invert_tf: bool = setting(
        False, "Send it as transform from the child to world_frame, for a child that has another parent.", live=True
    )
    path_length: int = setting(1000, "Poses kept in ~/path.", unit="poses", minimum=1, live=True)
    dense: str = setting(
        "always",
        "When depth, confidence and points are computed: always, subscribed (while someone subscribes to them, or "
        "something in the node goes by them; poses go on without).",
        choices=("always", "subscribed"),
        live=True,
    )
    viewer: bool = setting(
        False, "Whether a page in the browser shows the stream (docs/live.md); needs the extra `live`."
    )
    page: ViewerConfig = group(ViewerConfig, "viewer_")
    stream: StreamConfig = group(StreamConfig)
    output: OutputConfig = group(OutputConfig)
    size: SizeConfig = group(SizeConfig, "output.")
    scale: ScaleConfig = group(ScaleConfig, "scale.")
    obstacles: ObstacleConfig = group(ObstacleConfig, "obstacles.")

    def __post_init__(self) -> None:
        super().__post_init__()
        mapped = self.stream.segment.enabled or self.continue_odom
        if mapped and self.map_frame in (self.world_frame, self.base_frame):
            raise ValueError(f"map_frame must have a name of its own, got {self.map_frame!r}; REP 105 has map")
        if self.world_frame == self.base_frame:
            raise ValueError(
                f"world_frame must have a name of its own, got {self.world_frame!r} beside base_frame "
                f"{self.base_frame!r}; REP 105 has odom and base_link"
            )
