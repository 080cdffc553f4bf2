WITH "_read_1_sent" AS (
  SELECT
    NULLIF("user", '') AS "user",
    NULLIF("id", '') AS "id",
    CASE WHEN ABS(CAST("value" AS DOUBLE)) <= 1.7976931348623157e308 THEN CAST("value" AS DOUBLE) END AS "value",
    CASE WHEN ABS("event_time") < 9007199254 THEN CAST(ROUND("event_time" * 1e6) AS BIGINT) END AS "_said",
    CASE WHEN ABS("arrival") < 9007199254 THEN CAST(ROUND("arrival" * 1e6) AS BIGINT) END AS "_arrival",
    "position" AS "_position"
  FROM "sent"
), "_copies_1_sent" AS (
  SELECT
    *,
    LAG("_arrival") OVER (PARTITION BY "id" ORDER BY "_arrival", "_position") AS "_before"
  FROM "_read_1_sent"
  WHERE
    NOT "_said" IS NULL AND NOT "_arrival" IS NULL
), "_events_1_sent" AS (
  SELECT
    "user",
    "id",
    "value",
    CASE WHEN "_said" < "_arrival" THEN "_said" ELSE "_arrival" END AS "_time",
    "_arrival",
    "_position"
  FROM "_copies_1_sent"
  WHERE
    "id" IS NULL OR "_before" IS NULL OR "_arrival" - "_before" > 3600000000
), "_of_1_sent_1_user" AS (
  SELECT
    "user" AS "_key",
    "user",
    "id",
    "value",
    "_time",
    "_arrival"
  FROM "_events_1_sent"
  WHERE
    NOT "user" IS NULL
), "_read_2_orders" AS (
  SELECT
    NULLIF("user", '') AS "user",
    NULLIF("item", '') AS "item",
    NULLIF("word", '') AS "word",
    CASE WHEN ABS(CAST("value" AS DOUBLE)) <= 1.7976931348623157e308 THEN CAST("value" AS DOUBLE) END AS "value",
    CASE WHEN ABS("event_time") < 9007199254 THEN CAST(ROUND("event_time" * 1e6) AS BIGINT) END AS "_said",
    CASE WHEN ABS("arrival") < 9007199254 THEN CAST(ROUND("arrival" * 1e6) AS BIGINT) END AS "_arrival",
    "position" AS "_position"
  FROM "orders"
), "_events_2_orders" AS (
  SELECT
    "user",
    "item",
    "word",
    "value",
    CASE WHEN "_said" < "_arrival" THEN "_said" ELSE "_arrival" END AS "_time",
    "_arrival",
    "_position"
  FROM "_read_2_orders"
  WHERE
    NOT "_said" IS NULL AND NOT "_arrival" IS NULL
), "_of_2_orders_1_item" AS (
  SELECT
    "item" AS "_key",
    "user",
    "item",
    "word",
    "value",
    "_time",
    "_arrival"
  FROM "_events_2_orders"
  WHERE
    NOT "item" IS NULL
), "_of_2_orders_2_user" AS (
  SELECT
    "user" AS "_key",
    "user",
    "item",
    "word",
    "value",
    "_time",
    "_arrival",
    ROW_NUMBER() OVER (PARTITION BY "user" ORDER BY "_time", "_arrival", "_position") AS "_rank"
  FROM "_events_2_orders"
  WHERE
    NOT "user" IS NULL
), "_asks_1_user" AS (
  SELECT DISTINCT
    "user" AS "_key",
    CASE WHEN ABS("event_time") < 9007199254 THEN CAST(ROUND("event_time" * 1e6) AS BIGINT) END AS "_at"
  FROM "labels"
  WHERE
    "user" <> '' AND ABS("event_time") < 9007199254
), "_asks_2_item" AS (
  SELECT DISTINCT
    "item" AS "_key",
    CASE WHEN ABS("event_time") < 9007199254 THEN CAST(ROUND("event_time" * 1e6) AS BIGINT) END AS "_at"
  FROM "labels"
  WHERE
    "item" <> '' AND ABS("event_time") < 9007199254
), "_edges_1_user" AS (
  SELECT
    "_key",
    "_at",
    (
      (
        "_at" - 604800000000
      ) - (
        (
          "_at" - 604800000000
        ) % 14400000000 + 14400000000
      ) % 14400000000
    ) AS "_far",
    (
      "_at" - (
        "_at" % 604800000000 + 604800000000
      ) % 604800000000
    ) AS "_block"
  FROM "_asks_1_user"
), "_cut_1_user" AS (
  SELECT
    *
  FROM (
    SELECT
      "_key",
      "_time",
      "_arrival",
      (
        "_time" - (
          "_time" % 604800000000 + 604800000000
        ) % 604800000000
      ) AS "_block",
      (
        "_arrival" - (
          "_arrival" % 604800000000 + 604800000000
        ) % 604800000000
      ) AS "_came",
      CASE WHEN (
        "value" > 0.5e0 AND "id" <> 'x'
      ) THEN 1 END AS "_x0"
    FROM "_of_1_sent_1_user"
  ) AS "_all"
  WHERE
    NOT "_x0" IS NULL
), "_begun_1_user" AS (
  SELECT
    "_key",
    "_at",
    "_c0"
  FROM (
    SELECT
      "_key",
      "_at",
      COUNT("_x0") OVER (PARTITION BY "_key", "_block" ORDER BY "_when", "_turn" ROWS BETWEEN UNBOUNDED PRECEDING AND CURRENT ROW) AS "_c0"
    FROM (
      SELECT
        "_key",
        "_at",
        "_block",
        "_at" AS "_when",
        0 AS "_turn",
        CAST(NULL AS BIGINT) AS "_x0"
      FROM "_edges_1_user"
      UNION ALL
      SELECT
        "_key",
        CAST(NULL AS BIGINT),
        "_block",
        "_arrival",
        1,
        "_x0"
      FROM "_cut_1_user"
      WHERE
        "_came" = "_block"
    ) AS "_both"
  ) AS "_along"
  WHERE
    NOT "_at" IS NULL
), "_ended_1_user" AS (
  SELECT
    "_key",
    "_at",
    "_c0"
  FROM (
    SELECT
      "_key",
      "_at",
      COUNT("_x0") OVER (PARTITION BY "_key", "_block" ORDER BY "_when" DESC, "_turn" ROWS BETWEEN UNBOUNDED PRECEDING AND CURRENT ROW) AS "_c0"
    FROM (
      SELECT
        "_key",
        "_at",
        "_block" - 604800000000 AS "_block",
        "_far" AS "_when",
        1 AS "_turn",
        CAST(NULL AS BIGINT) AS "_x0"
      FROM "_edges_1_user"
      UNION ALL
      SELECT
        "_key",
        CAST(NULL AS BIGINT),
        "_block",
        "_time",
        0,
        "_x0"
      FROM "_cut_1_user"
      WHERE
        "_came" = "_block"
    ) AS "_both"
  ) AS "_along"
  WHERE
    NOT "_at" IS NULL
), "_late_1_user" AS (
  SELECT
    "_ask"."_key",
    "_ask"."_at",
    CASE WHEN "_x0" IS NULL THEN 0 ELSE 1 END AS "_c0"
  FROM "_edges_1_user" AS "_ask"
  JOIN "_cut_1_user" AS "_event"
    ON "_event"."_key" = "_ask"."_key"
    AND "_event"."_came" = "_ask"."_block"
    AND "_event"."_block" = "_ask"."_block" - 604800000000
  WHERE
    "_event"."_arrival" < "_ask"."_at" AND "_event"."_time" >= "_ask"."_far"
), "_whole_1_user" AS (
  SELECT
    "_key",
    "_at",
    SUM("_c0") AS "_c0"
  FROM (
    SELECT
      "_key",
      "_at",
      "_c0"
    FROM "_begun_1_user"
    UNION ALL
    SELECT
      "_key",
      "_at",
      "_c0"
    FROM "_ended_1_user"
    UNION ALL
    SELECT
      "_key",
      "_at",
      "_c0"
    FROM "_late_1_user"
  ) AS "_three"
  GROUP BY
    "_key",
    "_at"
), "_look_1_user" AS (
  SELECT
    "_all"."_key",
    "_all"."_at",
    CAST("_c0" AS DOUBLE) AS "clicks_7d"
  FROM "_whole_1_user" AS "_all"
), "_whole_2_user" AS (
  SELECT
    "_key",
    "_at",
    "_c0"
  FROM (
    SELECT
      "_key",
      "_at",
      COUNT("_x0") OVER (PARTITION BY "_key" ORDER BY "_when", "_turn" ROWS BETWEEN UNBOUNDED PRECEDING AND CURRENT ROW) AS "_c0"
    FROM (
      SELECT
        "_key",
        "_at",
        "_at" AS "_when",
        0 AS "_turn",
        CAST(NULL AS BIGINT) AS "_x0"
      FROM "_asks_1_user"
      UNION ALL
      SELECT
        "_key",
        CAST(NULL AS BIGINT),
        "_arrival",
        1,
        1 AS "_x0"
      FROM "_of_1_sent_1_user"
    ) AS "_both"
  ) AS "_along"
  WHERE
    NOT "_at" IS NULL
), "_look_2_user" AS (
  SELECT
    "_all"."_key",
    "_all"."_at",
    CAST("_c0" AS DOUBLE) AS "all"
  FROM "_whole_2_user" AS "_all"
), "_edges_3_item" AS (
  SELECT
    "_key",
    "_at",
    (
      (
        "_at" - 3600000000
      ) - (
        (
          "_at" - 3600000000
        ) % 300000000 + 300000000
      ) % 300000000
    ) AS "_far",
    (
      "_at" - (
        "_at" % 3600000000 + 3600000000
      ) % 3600000000
    ) AS "_block"
  FROM "_asks_2_item"
), "_cut_3_item" AS (
  SELECT
    *
  FROM (
    SELECT
      "_key",
      "_time",
      "_arrival",
      (
        "_time" - (
          "_time" % 3600000000 + 3600000000
        ) % 3600000000
      ) AS "_block",
      (
        "_arrival" - (
          "_arrival" % 3600000000 + 3600000000
        ) % 3600000000
      ) AS "_came",
      "value" AS "_x0"
    FROM "_of_2_orders_1_item"
  ) AS "_all"
  WHERE
    NOT "_x0" IS NULL
), "_begun_3_item" AS (
  SELECT
    "_key",
    "_at",
    "_c0",
    "_c1"
  FROM (
    SELECT
      "_key",
      "_at",
      SUM("_x0") OVER (PARTITION BY "_key", "_block" ORDER BY "_when", "_turn" ROWS BETWEEN UNBOUNDED PRECEDING AND CURRENT ROW) AS "_c0",
      COUNT("_x0") OVER (PARTITION BY "_key", "_block" ORDER BY "_when", "_turn" ROWS BETWEEN UNBOUNDED PRECEDING AND CURRENT ROW) AS "_c1"
    FROM (
      SELECT
        "_key",
        "_at",
        "_block",
        "_at" AS "_when",
        0 AS "_turn",
        CAST(NULL AS DOUBLE) AS "_x0"
      FROM "_edges_3_item"
      UNION ALL
      SELECT
        "_key",
        CAST(NULL AS BIGINT),
        "_block",
        "_arrival",
        1,
        "_x0"
      FROM "_cut_3_item"
      WHERE
        "_came" = "_block"
    ) AS "_both"
  ) AS "_along"
  WHERE
    NOT "_at" IS NULL
), "_ended_3_item" AS (
  SELECT
    "_key",
    "_at",
    "_c0",
    "_c1"
  FROM (
    SELECT
      "_key",
      "_at",
      SUM("_x0") OVER (PARTITION BY "_key", "_block" ORDER BY "_when" DESC, "_turn" ROWS BETWEEN UNBOUNDED PRECEDING AND CURRENT ROW) AS "_c0",
      COUNT("_x0") OVER (PARTITION BY "_key", "_block" ORDER BY "_when" DESC, "_turn" ROWS BETWEEN UNBOUNDED PRECEDING AND CURRENT ROW) AS "_c1"
    FROM (
      SELECT
        "_key",
        "_at",
        "_block" - 3600000000 AS "_block",
        "_far" AS "_when",
        1 AS "_turn",
        CAST(NULL AS DOUBLE) AS "_x0"
      FROM "_edges_3_item"
      UNION ALL
      SELECT
        "_key",
        CAST(NULL AS BIGINT),
        "_block",
        "_time",
        0,
        "_x0"
      FROM "_cut_3_item"
      WHERE
        "_came" = "_block"
    ) AS "_both"
  ) AS "_along"
  WHERE
    NOT "_at" IS NULL
), "_late_3_item" AS (
  SELECT
    "_ask"."_key",
    "_ask"."_at",
    "_x0" AS "_c0",
    CASE WHEN "_x0" IS NULL THEN 0 ELSE 1 END AS "_c1"
  FROM "_edges_3_item" AS "_ask"
  JOIN "_cut_3_item" AS "_event"
    ON "_event"."_key" = "_ask"."_key"
    AND "_event"."_came" = "_ask"."_block"
    AND "_event"."_block" = "_ask"."_block" - 3600000000
  WHERE
    "_event"."_arrival" < "_ask"."_at" AND "_event"."_time" >= "_ask"."_far"
), "_whole_3_item" AS (
  SELECT
    "_key",
    "_at",
    SUM("_c0") AS "_c0",
    SUM("_c1") AS "_c1"
  FROM (
    SELECT
      "_key",
      "_at",
      "_c0",
      "_c1"
    FROM "_begun_3_item"
    UNION ALL
    SELECT
      "_key",
      "_at",
      "_c0",
      "_c1"
    FROM "_ended_3_item"
    UNION ALL
    SELECT
      "_key",
      "_at",
      "_c0",
      "_c1"
    FROM "_late_3_item"
  ) AS "_three"
  GROUP BY
    "_key",
    "_at"
), "_look_3_item" AS (
  SELECT
    "_all"."_key",
    "_all"."_at",
    "_c0" / NULLIF(CAST("_c1" AS DOUBLE), 0e0) AS "mean_1h"
  FROM "_whole_3_item" AS "_all"
), "_whole_4_user" AS (
  SELECT
    "_key",
    "_at",
    "_c0"
  FROM (
    SELECT
      "_key",
      "_at",
      MAX("_x0") OVER (PARTITION BY "_key" ORDER BY "_when", "_turn" ROWS BETWEEN UNBOUNDED PRECEDING AND CURRENT ROW) AS "_c0"
    FROM (
      SELECT
        "_key",
        "_at",
        "_at" AS "_when",
        0 AS "_turn",
        CAST(NULL AS BIGINT) AS "_x0"
      FROM "_asks_1_user"
      UNION ALL
      SELECT
        "_key",
        CAST(NULL AS BIGINT),
        "_arrival",
        1,
        CASE WHEN NOT "word" IS NULL THEN "_rank" END AS "_x0"
      FROM "_of_2_orders_2_user"
    ) AS "_both"
  ) AS "_along"
  WHERE
    NOT "_at" IS NULL
), "_look_4_user" AS (
  SELECT
    "_all"."_key",
    "_all"."_at",
    "_latest_0"."word" AS "last"
  FROM "_whole_4_user" AS "_all"
  LEFT JOIN "_of_2_orders_2_user" AS "_latest_0"
    ON "_latest_0"."_key" = "_all"."_key" AND "_latest_0"."_rank" = "_all"."_c0"
), "_edges_5_user" AS (
  SELECT
    "_key",
    "_at",
    (
      (
        "_at" - 86400000000
      ) - (
        (
          "_at" - 86400000000
        ) % 14400000000 + 14400000000
      ) % 14400000000
    ) AS "_far",
    (
      "_at" - (
        "_at" % 86400000000 + 86400000000
      ) % 86400000000
    ) AS "_block"
  FROM "_asks_1_user"
), "_pairs_5_user" AS (
  SELECT
    "_ask"."_key",
    "_ask"."_at",
    "_event"."_time",
    "_event"."_x0"
  FROM (
    SELECT
      "_key",
      "_at",
      "_far",
      "_block"
    FROM "_edges_5_user"
    UNION ALL
    SELECT
      "_key",
      "_at",
      "_far",
      "_block" - 86400000000
    FROM "_edges_5_user"
  ) AS "_ask"
  JOIN (
    SELECT
      "_key",
      "_time",
      "_arrival",
      (
        "_time" - (
          "_time" % 86400000000 + 86400000000
        ) % 86400000000
      ) AS "_block",
      "value" AS "_x0"
    FROM "_of_2_orders_2_user"
  ) AS "_event"
    ON "_event"."_key" = "_ask"."_key" AND "_event"."_block" = "_ask"."_block"
  WHERE
    (
      NOT "_event"."_x0" IS NULL
    ) AND "_event"."_arrival" < "_ask"."_at" AND "_event"."_time" >= "_ask"."_far"
), "_numbered_5_user" AS (
  SELECT
    *,
    DENSE_RANK() OVER (PARTITION BY "_key", "_at" ORDER BY CASE WHEN "_x0" IS NULL THEN 1 ELSE 0 END, "_x0") AS "_same0"
  FROM "_pairs_5_user"
), "_told_5_user" AS (
  SELECT
    *,
    COUNT(*) OVER (PARTITION BY "_key", "_at", "_same0") AS "_often0",
    ROW_NUMBER() OVER (PARTITION BY "_key", "_at", "_same0" ORDER BY "_time") AS "_first0"
  FROM "_numbered_5_user"
), "_ordered_5_user" AS (
  SELECT
    *,
    ROW_NUMBER() OVER (
      PARTITION BY "_key", "_at"
      ORDER BY CASE WHEN NOT "_x0" IS NULL AND "_first0" = 1 THEN 0 ELSE 1 END, "_often0" DESC, "_x0"
    ) AS "_place0"
  FROM "_told_5_user"
), "_look_5_user" AS (
  SELECT
    "_key",
    "_at",
    MAX(CASE WHEN "_first0" = 1 AND "_place0" = 1 THEN "_x0" END) AS "often_0",
    MAX(CASE WHEN "_first0" = 1 AND "_place0" = 2 THEN "_x0" END) AS "often_1"
  FROM "_ordered_5_user"
  GROUP BY
    "_key",
    "_at"
), "_pairs_6_user" AS (
  SELECT
    "_ask"."_key",
    "_ask"."_at",
    "_event"."_time",
    "_event"."_x0"
  FROM "_asks_1_user" AS "_ask"
  JOIN (
    SELECT
      "_key",
      "_time",
      "_arrival",
      CASE WHEN NOT "word" IN ('it''s', 'a') THEN "value" END AS "_x0"
    FROM "_of_2_orders_2_user"
  ) AS "_event"
    ON "_event"."_key" = "_ask"."_key"
  WHERE
    (
      NOT "_event"."_x0" IS NULL
    ) AND "_event"."_arrival" < "_ask"."_at"
), "_look_6_user" AS (
  SELECT
    "_key",
    "_at",
    SUM("_x0" * POWER(0.5e0, CAST("_at" - "_time" AS DOUBLE) / 3600000000.0e0)) AS "faded"
  FROM "_pairs_6_user"
  GROUP BY
    "_key",
    "_at"
), "_edges_7_user" AS (
  SELECT
    "_key",
    "_at",
    (
      (
        "_at" - 604800000000
      ) - (
        (
          "_at" - 604800000000
        ) % 14400000000 + 14400000000
      ) % 14400000000
    ) AS "_far",
    (
      "_at" - (
        "_at" % 604800000000 + 604800000000
      ) % 604800000000
    ) AS "_block"
  FROM "_asks_1_user"
), "_pairs_7_user" AS (
  SELECT
    "_ask"."_key",
    "_ask"."_at",
    "_event"."_time",
    "_event"."_x0"
  FROM (
    SELECT
      "_key",
      "_at",
      "_far",
      "_block"
    FROM "_edges_7_user"
    UNION ALL
    SELECT
      "_key",
      "_at",
      "_far",
      "_block" - 604800000000
    FROM "_edges_7_user"
  ) AS "_ask"
  JOIN (
    SELECT
      "_key",
      "_time",
      "_arrival",
      (
        "_time" - (
          "_time" % 604800000000 + 604800000000
        ) % 604800000000
      ) AS "_block",
      "value" AS "_x0"
    FROM "_of_2_orders_2_user"
  ) AS "_event"
    ON "_event"."_key" = "_ask"."_key" AND "_event"."_block" = "_ask"."_block"
  WHERE
    (
      NOT "_event"."_x0" IS NULL
    ) AND "_event"."_arrival" < "_ask"."_at" AND "_event"."_time" >= "_ask"."_far"
), "_look_7_user" AS (
  SELECT
    "_key",
    "_at",
    SQRT(VAR_POP("_x0")) AS "std"
  FROM "_pairs_7_user"
  GROUP BY
    "_key",
    "_at"
), "_edges_8_user" AS (
  SELECT
    "_key",
    "_at",
    (
      (
        "_at" - 2592000000000
      ) - (
        (
          "_at" - 2592000000000
        ) % 86400000000 + 86400000000
      ) % 86400000000
    ) AS "_far",
    (
      "_at" - (
        "_at" % 2592000000000 + 2592000000000
      ) % 2592000000000
    ) AS "_block"
  FROM "_asks_1_user"
), "_cut_8_user" AS (
  SELECT
    *,
    CASE
      WHEN "_rank" = MAX("_rank") OVER (PARTITION BY "_key" ORDER BY "_arrival", "_rank" ROWS BETWEEN UNBOUNDED PRECEDING AND CURRENT ROW)
      THEN 1
      ELSE 0
    END AS "_new"
  FROM (
    SELECT
      "_key",
      "_time",
      "_arrival",
      "_rank",
      "item" AS "_x"
    FROM "_of_2_orders_2_user"
  ) AS "_all"
  WHERE
    NOT "_x" IS NULL
), "_aged_8_user" AS (
  SELECT
    "_key",
    "_time",
    "_arrival",
    "_rank",
    "_x",
    CAST(SUM("_new") OVER (PARTITION BY "_key" ORDER BY "_arrival", "_rank" ROWS BETWEEN UNBOUNDED PRECEDING AND CURRENT ROW) AS BIGINT) AS "_age"
  FROM "_cut_8_user"
), "_known_8_user" AS (
  SELECT
    "_key",
    "_at",
    "_far",
    "_age"
  FROM (
    SELECT
      "_key",
      "_at",
      "_far",
      MAX("_age") OVER (PARTITION BY "_key" ORDER BY "_when", "_turn" ROWS BETWEEN UNBOUNDED PRECEDING AND CURRENT ROW) AS "_age"
    FROM (
      SELECT
        "_key",
        "_at",
        "_far",
        "_at" AS "_when",
        0 AS "_turn",
        CAST(NULL AS BIGINT) AS "_age"
      FROM "_edges_8_user"
      UNION ALL
      SELECT
        "_key",
        CAST(NULL AS BIGINT),
        CAST(NULL AS BIGINT),
        "_arrival",
        1,
        "_age"
      FROM "_aged_8_user"
    ) AS "_both"
  ) AS "_along"
  WHERE
    NOT "_at" IS NULL AND NOT "_age" IS NULL
), "_ordered_8_user" AS (
  SELECT
    "_ask"."_key",
    "_ask"."_at",
    "_event"."_x",
    ROW_NUMBER() OVER (PARTITION BY "_ask"."_key", "_ask"."_at" ORDER BY "_event"."_rank" DESC) AS "_place"
  FROM (
    SELECT
      "_key",
      "_at",
      "_far",
      "_age" - "_back" AS "_age"
    FROM "_known_8_user" AS "_all"
    CROSS JOIN (
      SELECT
        0 AS "_back"
      UNION ALL
      SELECT
        1 AS "_back"
      UNION ALL
      SELECT
        2 AS "_back"
    ) AS "_steps"
  ) AS "_ask"
  JOIN "_aged_8_user" AS "_event"
    ON "_event"."_key" = "_ask"."_key" AND "_event"."_age" = "_ask"."_age"
  WHERE
    "_event"."_arrival" < "_ask"."_at" AND "_event"."_time" >= "_ask"."_far"
), "_look_8_user" AS (
  SELECT
    "_key",
    "_at",
    MAX(CASE WHEN "_place" = 1 THEN "_x" END) AS "history_0",
    MAX(CASE WHEN "_place" = 2 THEN "_x" END) AS "history_1",
    MAX(CASE WHEN "_place" = 3 THEN "_x" END) AS "history_2"
  FROM "_ordered_8_user"
  WHERE
    "_place" <= 3
  GROUP BY
    "_key",
    "_at"
)
SELECT
  "_labels".*,
  (
    (
      COALESCE("_look_1_user"."clicks_7d", 0e0) + 1.0e0
    ) / NULLIF(COALESCE("_look_2_user"."all", 0e0) + 20.0e0, 0e0)
  ) AS "rate",
  "_look_3_item"."mean_1h" AS "mean_1h",
  "_look_4_user"."last" AS "last",
  "_look_5_user"."often_0" AS "often_0",
  "_look_5_user"."often_1" AS "often_1",
  "_look_6_user"."faded" AS "faded",
  "_look_7_user"."std" AS "std",
  "_look_8_user"."history_0" AS "history_0",
  "_look_8_user"."history_1" AS "history_1",
  "_look_8_user"."history_2" AS "history_2"
FROM "labels" AS "_labels"
LEFT JOIN "_look_1_user"
  ON "_look_1_user"."_key" = "_labels"."user"
  AND "_look_1_user"."_at" = CASE WHEN ABS("_labels"."event_time") < 9007199254 THEN CAST(ROUND("_labels"."event_time" * 1e6) AS BIGINT) END
LEFT JOIN "_look_2_user"
  ON "_look_2_user"."_key" = "_labels"."user"
  AND "_look_2_user"."_at" = CASE WHEN ABS("_labels"."event_time") < 9007199254 THEN CAST(ROUND("_labels"."event_time" * 1e6) AS BIGINT) END
LEFT JOIN "_look_3_item"
  ON "_look_3_item"."_key" = "_labels"."item"
  AND "_look_3_item"."_at" = CASE WHEN ABS("_labels"."event_time") < 9007199254 THEN CAST(ROUND("_labels"."event_time" * 1e6) AS BIGINT) END
LEFT JOIN "_look_4_user"
  ON "_look_4_user"."_key" = "_labels"."user"
  AND "_look_4_user"."_at" = CASE WHEN ABS("_labels"."event_time") < 9007199254 THEN CAST(ROUND("_labels"."event_time" * 1e6) AS BIGINT) END
LEFT JOIN "_look_5_user"
  ON "_look_5_user"."_key" = "_labels"."user"
  AND "_look_5_user"."_at" = CASE WHEN ABS("_labels"."event_time") < 9007199254 THEN CAST(ROUND("_labels"."event_time" * 1e6) AS BIGINT) END
LEFT JOIN "_look_6_user"
  ON "_look_6_user"."_key" = "_labels"."user"
  AND "_look_6_user"."_at" = CASE WHEN ABS("_labels"."event_time") < 9007199254 THEN CAST(ROUND("_labels"."event_time" * 1e6) AS BIGINT) END
LEFT JOIN "_look_7_user"
  ON "_look_7_user"."_key" = "_labels"."user"
  AND "_look_7_user"."_at" = CASE WHEN ABS("_labels"."event_time") < 9007199254 THEN CAST(ROUND("_labels"."event_time" * 1e6) AS BIGINT) END
LEFT JOIN "_look_8_user"
  ON "_look_8_user"."_key" = "_labels"."user"
  AND "_look_8_user"."_at" = CASE WHEN ABS("_labels"."event_time") < 9007199254 THEN CAST(ROUND("_labels"."event_time" * 1e6) AS BIGINT) END
