"""What TFRecord, LitData, JSONL and CSV share: samples one behind the other, known by place, length and checksum."""
