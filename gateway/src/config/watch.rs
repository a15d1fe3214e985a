//! Files that are watched for changes.
