"""`tf.train.Example` and `SequenceExample` by the protobuf package, for comparison; without TensorFlow."""

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

_FIELD = descriptor_pb2.FieldDescriptorProto


def _messages():
    file = descriptor_pb2.FileDescriptorProto(name="example.proto", package="tf", syntax="proto3")

    def message(name, *fields, within=None):
        made = (within.nested_type if within else file.message_type).add(name=name)
        for number, (field, label, kind, of) in enumerate(fields, 1):
            made.field.add(name=field, number=number, label=label, type=kind, type_name=of)
        return made

    one, many = _FIELD.LABEL_OPTIONAL, _FIELD.LABEL_REPEATED
    message("BytesList", ("value", many, _FIELD.TYPE_BYTES, None))
    message("FloatList", ("value", many, _FIELD.TYPE_FLOAT, None))
    message("Int64List", ("value", many, _FIELD.TYPE_INT64, None))
    kinds = [
        (f"{kind}_list", one, _FIELD.TYPE_MESSAGE, f".tf.{kind.title()}List") for kind in ("bytes", "float", "int64")
    ]
    feature = message("Feature", *kinds)
    feature.oneof_decl.add(name="kind")
    for field in feature.field:
        field.oneof_index = 0
    features = message("Features", ("feature", many, _FIELD.TYPE_MESSAGE, ".tf.Features.FeatureEntry"))
    entry = message(
        "FeatureEntry",
        ("key", one, _FIELD.TYPE_STRING, None),
        ("value", one, _FIELD.TYPE_MESSAGE, ".tf.Feature"),
        within=features,
    )
    entry.options.map_entry = True
    message("Example", ("features", one, _FIELD.TYPE_MESSAGE, ".tf.Features"))
    message("FeatureList", ("feature", many, _FIELD.TYPE_MESSAGE, ".tf.Feature"))
    lists = message("FeatureLists", ("feature_list", many, _FIELD.TYPE_MESSAGE, ".tf.FeatureLists.FeatureListEntry"))
    entry = message(
        "FeatureListEntry",
        ("key", one, _FIELD.TYPE_STRING, None),
        ("value", one, _FIELD.TYPE_MESSAGE, ".tf.FeatureList"),
        within=lists,
    )
    entry.options.map_entry = True
    message(
        "SequenceExample",
        ("context", one, _FIELD.TYPE_MESSAGE, ".tf.Features"),
        ("feature_lists", one, _FIELD.TYPE_MESSAGE, ".tf.FeatureLists"),
    )
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return {
        name: message_factory.GetMessageClass(pool.FindMessageTypeByName(f"tf.{name}"))
        for name in ("Example", "SequenceExample")
    }


_MESSAGES = _messages()
Example = _MESSAGES["Example"]
SequenceExample = _MESSAGES["SequenceExample"]


def make_example(features):
    """An Example of lists: bytes, floats or ints, by the type of their first values; None for a feature without."""
    example = Example()
    for name, values in features.items():
        feature = example.features.feature[name]
        if values is None:
            continue
        kinds = {bytes: feature.bytes_list, float: feature.float_list, int: feature.int64_list}
        kinds[type(values[0])].value.extend(values)
    return example


def lists_of(example):
    """An Example's features as (kind, values)."""
    found = {}
    for name, feature in example.features.feature.items():
        kind = feature.WhichOneof("kind")
        found[name] = (kind, [] if kind is None else list(getattr(feature, kind).value))
    return found
