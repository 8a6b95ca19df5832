"""The semantics document, executed: each of its statements names the tests that hold it.

`epochfs/help/semantics.md` is what a mount promises. This module fails where a statement of it has
no test, where a test that is named does not exist, and where a number in it is not the code's.
"""

from __future__ import annotations

import ast
import functools
import re
from collections.abc import Iterator

import pytest
from support import CHECKOUT

from epochfs.config import BlobOptions, ListingOptions, TransportOptions
from epochfs.help import Heading, Item, Page, Paragraph, Table, page, parse

DOCUMENT: Page = parse(page("semantics"))

EXECUTED_BY = {
    "Read only": {
        "Every write is EROFS": """
            every_kind_of_write_is_refused_as_read_only
            the_unknown_is_not_there_and_nothing_can_be_written
            a_mount_is_written_to_only_if_that_was_asked_for""",
    },
    "Verified": {
        "A blob is hashed as it arrives": """
            every_blob_and_manifest_has_the_digest_it_is_named_by
            the_last_read_waits_for_the_digest
            a_reader_that_comes_while_wrong_bytes_are_dropped_gets_no_clean_end_on_them
            no_order_of_reads_gets_all_of_wrong_bytes
            a_whole_read_of_wrong_bytes_is_not_ended_by_what_a_random_read_left_in_the_kernel
            wrong_bytes_are_refused_and_not_kept""",
        "A mismatch is EIO": """
            wrong_bytes_are_refused_and_not_kept
            wrong_bytes_are_fetched_again_if_nobody_saw_them
            bytes_that_stay_wrong_are_an_error_and_are_not_kept
            wrong_bytes_that_somebody_saw_are_an_error_at_the_end""",
        "`--verify=full` hashes the whole blob": """
            verify_first_serves_nothing_before_the_digest
            every_option_may_be_a_word_of_o""",
        "**A random read": """
            a_range_that_came_wrong_is_not_kept_for_a_stream_that_is_right
            the_kernel_keeps_pages_only_of_what_was_verified_before_they_were_read""",
        "Once a blob has come wrong": """
            a_reader_of_wrong_bytes_is_not_brought_to_a_clean_end_by_another_readers_right_ones""",
        "Manifests are hashed": """
            bytes_with_another_digest_than_asked_for_are_a_mismatch
            wrong_bytes_of_a_manifest_are_never_shown
            a_manifest_that_was_changed_on_disk_is_not_served""",
        "A file of a layer": """
            where_only_the_index_was_kept_no_wrong_bytes_are_shown
            a_chunk_of_other_bytes_than_the_table_says_is_an_error
            wrong_bytes_of_a_layer_are_never_shown
            what_one_image_says_of_a_layer_is_not_believed_of_another
            a_referrer_that_nothing_in_the_image_names_is_not_believed
            a_referrer_that_is_believed_is_used""",
        "**`--unverified-layers` shows files": """
            without_the_option_the_whole_layer_is_verified_first
            a_file_near_the_start_costs_a_small_part_of_the_layer
            once_the_digest_is_wrong_nothing_more_is_shown
            what_has_passed_is_shown_while_others_wait_for_the_rest
            a_listing_is_of_the_whole_layers
            links_lead_where_they_should
            the_root_of_an_image_is_there_before_any_layer
            a_layer_that_is_to_be_verified_first_is_not_shown_before""",
    },
    "Exact": {
        "A read returns": "reads_anywhere_give_exactly_what_is_there",
    },
    "Fresh": {
        "Tags and listings are at most": """
            a_moved_tag_is_seen_within_the_ttl
            no_value_is_ever_older_than_its_time
            kernel_and_listing_together_stay_within_the_ttl""",
        "An unknown name is remembered": """
            an_absence_is_remembered_for_a_shorter_time
            an_unknown_blob_is_asked_for_once_in_a_while
            no_other_error_is_ever_remembered""",
        "A plain listing of tags": """
            a_plain_listing_resolves_no_tag_and_the_long_one_resolves_all
            the_first_that_is_resolved_after_a_listing_starts_the_rest
            the_rest_is_resolved_in_parallel""",
        "A walk over repositories": """
            the_next_siblings_are_begun_when_the_second_is_asked_for
            the_second_in_order_begins_the_next_and_no_more""",
    },
    "Whole": {
        "A listing is complete": """
            what_cannot_be_had_is_an_error_behind_what_can
            an_instance_that_cannot_be_had_is_an_error_behind_what_there_is""",
        "What was there": """
            after_a_changed_password_a_backup_fails_and_the_last_good_one_is_whole
            every_name_is_there_or_the_listing_that_should_have_it_fails
            a_backup_that_succeeds_is_whole_and_one_that_fails_loses_nothing
            listing_what_is_denied_is_an_error_but_for_a_parent
            a_catalog_that_fails_is_no_missing_one
            a_listing_that_is_none_is_a_violation
            a_404_without_a_code_is_no_answer_about_what_was_answered_before""",
        "A tag that is listed": "a_tag_that_is_listed_and_cannot_be_fetched_is_an_io_error",
        "A reader of a directory": """
            a_reader_goes_on_with_what_it_began_with
            what_was_left_half_read_goes_when_more_is_read_than_is_kept
            who_cannot_go_on_with_the_same_names_is_told_so""",
    },
    "A fault stays where it is": {
        "One broken listing": """
            one_repository_whose_tags_cannot_be_listed_takes_no_other
            one_tag_that_cannot_be_resolved_takes_no_other
            what_cannot_be_had_is_an_error_behind_what_can
            a_malformed_manifest_is_listed_and_what_it_names_is_an_error
            a_map_that_does_not_fit_is_an_error
            a_fault_ends_in_the_right_bytes_or_in_an_errno_in_time""",
        "What is opened by its path": """
            what_a_digest_names_neither_waits_for_a_listing_nor_fails_with_it
            any_other_repository_opens
            any_other_name_can_be_entered_and_lists_nothing
            a_registry_that_falls_silent_does_not_hold_up_the_listing_of_another_repository""",
        "`manifest.json` is whatever bytes": """
            any_bytes_have_their_own_digest
            a_malformed_manifest_is_listed_and_what_it_names_is_an_error""",
    },
    "Files and volumes": {
        "Every layer of an artifact": """
            each_artifact_has_its_kind_and_every_layer_by_its_name_and_in_its_volume
            of_many_files_one_is_fetched_and_a_listing_fetches_none""",
        "A file of `volume/`": """
            it_is_not_listed_and_is_regular_files_only
            a_volume_bound_alone_is_whole_when_the_mount_is_gone""",
        "`volume/` and the links": """
            it_is_not_listed_and_is_regular_files_only
            a_reference_is_a_link_to_the_volume""",
        "Where two layers": """
            files_and_tars_are_one_tree_and_the_later_layer_wins
            what_a_layer_hides_is_gone""",
        "A tar layer that cannot be read": "a_tar_that_is_cut_short_leaves_its_neighbours",
        "A file of an artifact": """
            mode_owner_and_time_are_those_of_the_file_metadata
            malformed_file_metadata_is_ignored_in_one_log_line
            metadata_that_is_no_json_is_ignored""",
        "A layer of type": """
            each_artifact_has_its_kind_and_every_layer_by_its_name_and_in_its_volume""",
        "A mount of one artifact": """
            an_artifact_is_mounted_by_its_tag_and_stays_what_it_was
            what_is_not_there_is_told_at_once""",
    },
    "There when the registry is not": {
        "While the registry is down": """
            what_is_cached_is_served_while_the_registry_is_down_and_it_heals
            an_outage_is_survived_seen_and_ends_without_a_remount
            names_grow_too_old_and_what_a_digest_names_does_not
            while_the_registry_is_known_to_be_down_what_is_recalled_costs_no_attempt""",
        "With `--offline-ok`": "offline_ok_mounts_what_was_cached_and_heals",
        "The outage ends by itself": """
            a_registry_that_was_gone_and_is_back_is_read_from_without_a_remount
            an_outage_ends_by_itself_once_a_ping_is_answered""",
    },
    "Stable": {
        "Inode numbers": """
            inode_numbers_are_fixed_for_all_time
            a_remount_shows_the_same_in_every_respect""",
        "Content has the time": "times_are_constant_but_for_manifests_that_tell_one_and_tags",
        "A tag link has the time": """
            a_tag_that_moves_takes_its_link_and_its_time_with_it
            a_remount_keeps_what_was_seen""",
    },
    "Bounded": {
        "Every operation ends": """
            a_registry_that_falls_silent
            a_read_that_the_kernel_repeats_has_no_more_time_than_one""",
        "Listing `manifests`": "what_takes_many_requests_ends_in_time_and_another_try_goes_on",
    },
    "The cache helps, and is never a condition": {
        "Where the cache's disk is full": """
            a_disk_that_is_full_before_the_mount
            a_disk_that_fills_up_under_the_mount
            a_disk_without_inodes
            a_disk_that_became_read_only
            few_descriptors
            a_disk_smaller_than_the_registry
            wrong_bytes_never_come_to_a_clean_end""",
        "Before that": """
            what_was_used_long_ago_goes_before_a_blob_is_read_past_the_cache""",
        "The log has one warning": "the_cache_is_told_once",
        "A tag that is seen": """
            a_first_sight_that_a_full_disk_does_not_take_is_remembered
            a_read_only_disk_without_a_file_hides_no_tag""",
    },
    "Distrustful": {
        "What a registry says is parsed": """
            hostile_names_are_left_out_and_their_neighbours_listed
            whatever_is_accepted_is_safe_in_a_path
            hostile_json_is_refused
            a_lie_comes_to_what_it_should""",
        "Neither an endless answer": """
            an_endless_manifest_takes_little_memory
            ten_million_tags_take_bounded_memory
            a_size_beyond_the_disk_is_not_even_asked_of_it""",
    },
    "Permissions": {
        "A cached blob is served only": """
            the_cache_is_no_way_round_the_registry
            a_manifest_proves_the_blobs_it_names
            one_users_cached_blob_is_nothing_to_another""",
        "That ends when": """
            once_access_was_denied_nothing_of_the_repository_is_recalled
            a_denied_repository_is_forgotten_and_its_neighbours_are_not
            a_denied_listing_ends_nothing_but_itself""",
        "What the registry said is kept": """
            another_registry_or_other_credentials_get_nothing
            other_credentials_recall_nothing
            the_file_holds_no_credential_and_two_files_tell_them_by_different_hashes""",
        "When a token or password is rotated": """
            a_mount_whose_token_is_rotated_serves_what_it_has_proved_until_that_is_refused
            what_a_process_has_proved_outlives_the_rotation_of_its_token""",
    },
    "Writing": {
        "A mount can be written to": """
            a_mount_is_written_to_only_if_that_was_asked_for
            listings_and_writes_are_the_registrys_alone
            a_registry_that_lets_nobody_push_is_told_before_anything_is_written""",
        "When close(2) of": """
            a_blob_is_in_the_registry_once_cp_has_ended
            a_blob_is_in_the_registry_when_its_file_is_closed
            what_does_not_say_that_the_blob_is_stored_is_no_success
            wrong_bytes_are_an_error_of_close_and_nothing_is_left
            a_shell_that_closes_a_copy_of_the_descriptor_first_loses_nothing""",
        "`manifests/<digest>/manifest.json`": """
            a_manifest_of_another_digest_is_refused
            what_is_no_manifest_is_refused""",
        "**Order does not matter.**": """
            a_manifest_and_its_tag_wait_for_the_blobs
            any_order_ends_with_the_same
            nothing_half_pushed_is_visible""",
        "fsync(2) is 0": """
            fsync_says_whether_it_is_in_the_registry
            a_waiting_manifest_can_be_read_but_not_synced""",
        "What waits, and for what": """
            what_waits_is_told_with_what_it_waits_for
            umount_leaves_what_is_not_written_yet
            umount_tries_once_more_to_write_what_waits
            a_mount_that_is_ended_says_what_is_lost""",
        "A link in `tags/`": """
            a_link_to_a_manifest_is_a_tag
            a_link_over_a_tag_moves_it
            a_link_that_is_renamed_over_a_tag_moves_it_with_one_put
            a_link_that_leads_to_no_manifest_is_refused
            any_other_target_is_refused""",
        "`rm` of a tag": """
            a_tag_is_removed_and_its_sibling_stays
            a_tag_that_cannot_be_deleted_by_itself_stays""",
        "A name that begins with": """
            a_temporary_name_is_local_until_it_is_renamed
            a_rename_that_cannot_be_leaves_the_temporary_name
            they_are_only_here_and_are_told""",
        "A digest of an unknown algorithm": """
            a_digest_that_no_registry_knows_is_refused_at_once
            a_name_that_cannot_be_a_tag_is_refused
            what_a_registry_has_no_way_to_keep_is_refused""",
        "Bytes may come": """
            bytes_may_come_in_any_order_and_twice
            a_preallocated_file_may_be_closed_before_it_is_whole
            a_blob_may_be_written_out_of_order_into_room_that_was_reserved
            a_blob_that_is_being_written_cannot_be_read""",
        "What follows from a manifest": """
            what_is_derived_is_accepted_before_and_after_it_is_shown
            nothing_can_be_added_to_what_a_manifest_says""",
        "A directory that a program": """
            a_directory_that_is_being_made_has_what_was_made_in_it
            it_shows_all_when_its_maker_has_ended
            it_shows_all_when_its_maker_lists_it
            it_shows_all_when_its_maker_follows_a_link_to_it
            it_shows_all_when_another_program_changes_it
            it_shows_all_when_nobody_writes_for_a_minute""",
        "`layout/` takes": """
            a_layout_is_written_in_any_order
            an_index_adds_and_moves_tags_and_deletes_none""",
        "`rm blobs/<digest>`": """
            content_is_deleted_only_where_that_was_asked_for
            with_the_option_content_is_deleted_by_digest
            nothing_is_deleted_without_the_option""",
        "chmod, chown": """
            attributes_are_accepted_and_not_kept
            attributes_are_accepted_where_a_copy_would_fail""",
        "Hard links": """
            what_a_registry_has_no_way_to_keep_is_refused
            the_flags_of_a_rename_count
            room_is_reserved_and_holes_are_not_punched
            a_file_that_was_removed_while_open_goes_on_being_written""",
        "What the registry has": """
            what_is_there_already_is_not_sent_again
            a_blob_of_another_repository_is_mounted""",
        "A listing through the mount": """
            a_link_to_a_manifest_is_a_tag
            another_mount_sees_what_was_written
            two_mounts_that_move_one_tag_leave_it_where_the_later_put_it""",
        "If the process is killed": """
            a_killed_mount_leaves_what_was_acknowledged_and_nothing_else""",
        "While the registry is down, close": """
            a_mount_made_in_an_outage_is_written_to_once_the_registry_is_back""",
        "Files are staged": """
            the_room_is_that_of_the_caches_disk
            cached_blobs_go_before_there_is_no_room""",
        "With `--allow-other`": "others_may_look_and_not_write",
    },
    "Errors": {
        "unknown repository": "the_unknown_is_not_there_and_nothing_can_be_written",
        "a blob that a manifest names": "a_blob_that_only_a_manifest_knows_is_not_there",
        "`volume/` of an index": """
            a_platform_that_an_index_does_not_have_is_not_found_and_told_what_there_is""",
        "a name over 255 bytes": "a_name_that_is_too_long",
        "a tag that is listed": "a_tag_that_is_listed_and_cannot_be_fetched_is_an_io_error",
        "access denied": "denied_access",
        "any write": "the_unknown_is_not_there_and_nothing_can_be_written",
        "a write that a registry": "what_a_registry_has_no_way_to_keep_is_refused",
        "a name or target": """
            what_a_registry_has_no_way_to_keep_is_refused
            a_link_that_leads_to_no_manifest_is_refused""",
        "fsync(2) of what waits": """
            fsync_says_whether_it_is_in_the_registry
            a_blob_that_is_being_written_cannot_be_read""",
        "no room for": "cached_blobs_go_before_there_is_no_room",
        "time limit passed": "a_registry_that_falls_silent",
        "wrong digest or size": """
            wrong_bytes_are_refused_and_not_kept
            a_size_that_is_not_the_descriptors
            an_outage_is_survived_seen_and_ends_without_a_remount""",
        "the blob vanished": "a_blob_that_vanished_under_an_open_file",
        "a manifest over": """
            a_manifest_over_the_limit
            a_layer_that_decompresses_without_end_is_too_large""",
    },
}
"""For each statement, by its section and first words, the tests that execute it."""


def statements() -> Iterator[tuple[str, str]]:
    """Yield each statement of the document, with its section."""
    section = ""
    for block in DOCUMENT.blocks:
        match block:
            case Heading(text):
                section = text
            case Item(_, text):
                yield section, text
            case Table(_, rows):
                yield from ((section, row[0]) for row in rows)
            case Paragraph(text):
                assert not section, f"not a statement: {text}"


STATEMENTS = list(statements())


@functools.cache
def known() -> set[str]:
    """Return the names of all test functions, methods included."""
    return {
        node.name.removeprefix("test_")
        for file in (CHECKOUT / "tests").rglob("test_*.py")
        for node in ast.walk(ast.parse(file.read_bytes(), str(file)))
        if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")
    }


@pytest.mark.parametrize(("section", "text"), STATEMENTS, ids=[text[:40] for _, text in STATEMENTS])
def test_each_statement_names_the_tests_that_execute_it(section: str, text: str) -> None:
    [named] = [named for start, named in EXECUTED_BY[section].items() if text.startswith(start)]
    assert named.split()
    assert set(named.split()) - known() == set()


def test_nothing_is_executed_that_the_document_does_not_state() -> None:
    named = [(section, start) for section, rows in EXECUTED_BY.items() for start in rows]
    stated = [
        next((one for one in named if one[0] == section and text.startswith(one[1])), None)
        for section, text in STATEMENTS
    ]
    assert stated == named


def test_the_numbers_of_the_document_are_those_of_the_code() -> None:
    text = " ".join(page("semantics").split())
    listings = ListingOptions()
    assert listings.timeout == BlobOptions().timeout == TransportOptions().timeout
    for stated, number in {
        r"`--metadata-ttl` old \((\d+) s\)": listings.metadata_ttl,
        r"remembered as unknown for (\d+) s": listings.negative_ttl,
        r"the rest, (\d+) at a time": listings.parallel,
        r"finds the next (\d+)": listings.parallel,
        r"`--stale-if-error` \((\d+) h\)": listings.stale_if_error / 3600,
        r"within `--timeout` \((\d+) s\)": listings.timeout,
        r"`--manifest-limit` \((\d+) MiB\)": listings.manifest_limit / 1024**2,
    }.items():
        [found] = re.findall(stated, text)
        assert int(found) == number, stated
